// What the browser loads: the page, and the API under the same origin, since that allows no others.

import { readFile } from "node:fs/promises";
import http from "node:http";
import net from "node:net";

const FILES = {
    "/": ["page/index.html", "text/html"],
    "/nova.js": ["page/nova.js", "text/javascript"],
    "/statistics.mjs": ["statistics.mjs", "text/javascript"],
};

/** Serves /, and passes /api/… and /ws on to the API. Returns the origin. */
export async function serve(apiUrl) {
    const api = new URL(apiUrl);
    const server = http.createServer(async (request, response) => {
        if (request.url.startsWith("/api/")) {
            forward(api, request, response);
        } else if (FILES[request.url]) {
            const [file, type] = FILES[request.url];
            response.writeHead(200, { "Content-Type": type });
            response.end(await readFile(new URL(file, import.meta.url)));
        } else {
            response.writeHead(404).end();
        }
    });
    server.on("upgrade", (request, socket, head) => {
        const target = net.connect(Number(api.port), api.hostname, () => {
            const { rawHeaders, url } = request;
            const lines = [`GET ${url} HTTP/1.1`];
            for (let i = 0; i < rawHeaders.length; i += 2) lines.push(`${rawHeaders[i]}: ${rawHeaders[i + 1]}`);
            target.write(`${lines.join("\r\n")}\r\n\r\n`);
            target.write(head);
            target.pipe(socket).pipe(target);
        });
        target.on("error", () => socket.destroy());
        socket.on("error", () => target.destroy());
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${server.address().port}`;
}

function forward(api, request, response) {
    const { method, headers } = request;
    const target = { host: api.hostname, port: api.port, path: request.url.slice("/api".length), method, headers };
    const asked = http.request(target, (answer) => {
        response.writeHead(answer.statusCode, answer.headers);
        answer.pipe(response);
    });
    asked.on("error", () => response.writeHead(502).end());
    request.pipe(asked);
}
