// An HTTP proxy before the homeserver that can refuse what is sent to a room, as the homeserver would.

import http from "node:http";

export class RefusingProxy {
    #refusals = [];

    constructor(target) {
        this.target = new URL(target);
    }

    /** The next event that is sent to any room is refused with this code, and each after it until `times` were. */
    refuse(errcode, times = 1) {
        for (let n = 0; n < times; n += 1) this.#refusals.push(errcode);
    }

    async listen(port) {
        this.server = http.createServer((request, response) => this.#carry(request, response));
        await new Promise((resolve, reject) => {
            this.server.once("error", reject).listen(port, "127.0.0.1", resolve);
        });
    }

    #carry(request, response) {
        if (this.#refusals.length > 0 && request.method === "PUT" && request.url.includes("/send/m.room.message/")) {
            request.resume();
            response.writeHead(400, { "Content-Type": "application/json" });
            response.end(JSON.stringify({ errcode: this.#refusals.shift(), error: "refused by the test" }));
            return;
        }
        const { hostname, port } = this.target;
        const { method, url: path, headers } = request;
        const onward = http.request({ hostname, port, method, path, headers }, (answer) => {
            response.writeHead(answer.statusCode, answer.headers);
            answer.pipe(response);
        });
        onward.on("error", () => response.destroy());
        response.on("close", () => onward.destroy());
        request.pipe(onward);
    }
}
