// An HTTP proxy before the homeserver that can refuse what is sent to a room, as the homeserver would.

import http from "node:http";

export class RefusingProxy {
    #refusals = [];
    #uninvited = [];

    constructor(target) {
        this.target = new URL(target);
    }

    /** The next event that is sent to any room is refused with this code, and each after it until `times` were. */
    refuse(errcode, times = 1) {
        for (let n = 0; n < times; n += 1) this.#refusals.push(errcode);
    }

    /** The next invitation is refused with this code, as by a rule of the homeserver's. */
    refuseInvitation(errcode) {
        this.#uninvited.push(errcode);
    }

    async listen(port) {
        this.server = http.createServer((request, response) => this.#carry(request, response));
        await new Promise((resolve, reject) => {
            this.server.once("error", reject).listen(port, "127.0.0.1", resolve);
        });
    }

    #carry(request, response) {
        if (request.method === "PUT" && request.url.includes("/send/m.room.message/") && this.#refusals.length > 0) {
            refuse(request, response, 400, this.#refusals.shift());
            return;
        }
        if (request.method === "POST" && request.url.endsWith("/invite") && this.#uninvited.length > 0) {
            refuse(request, response, 403, this.#uninvited.shift());
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

function refuse(request, response, status, errcode) {
    request.resume();
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(JSON.stringify({ errcode, error: "refused by the test" }));
}
