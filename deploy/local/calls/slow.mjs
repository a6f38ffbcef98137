// A TCP proxy that can be slow: each piece of data arrives `delay` milliseconds late, in order.

import net from "node:net";

export class SlowProxy {
    delay = 0;

    constructor(targetPort) {
        this.targetPort = targetPort;
    }

    async listen(port) {
        this.server = net.createServer((client) => {
            const target = net.connect(this.targetPort, "127.0.0.1");
            this.#carry(client, target);
            this.#carry(target, client);
        });
        await new Promise((resolve, reject) => {
            this.server.once("error", reject).listen(port, "127.0.0.1", resolve);
        });
    }

    #carry(from, to) {
        let last = Promise.resolve();
        const later = (work) => {
            const due = performance.now() + this.delay;
            last = last.then(async () => {
                const wait = due - performance.now();
                if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
                work();
            });
        };
        from.on("data", (data) => later(() => to.writable && to.write(data)));
        from.on("end", () => later(() => to.end()));
        from.on("error", () => to.destroy());
        from.on("close", () => later(() => to.destroy()));
    }
}
