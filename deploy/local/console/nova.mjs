// A client of the REST API.

import { Fault, until } from "../waiting.mjs";

export class NovaUser {
    constructor({ id, token }, apiUrl) {
        Object.assign(this, { id, token, apiUrl });
    }

    async request(method, path, body) {
        const headers = { Authorization: `Bearer ${this.token}`, "Content-Type": "application/json" };
        const answer = await fetch(this.apiUrl + path, { method, headers, body: body && JSON.stringify(body) });
        const text = await answer.text();
        if (!answer.ok) throw new Fault(`${method} ${path} was answered with ${answer.status}: ${text.slice(0, 300)}`);
        return text === "" ? null : JSON.parse(text);
    }

    async converse(other, name) {
        return (await this.request("POST", "/conversations", { members: [other.id], name })).id;
    }

    async invite(conversationId, userId) {
        await this.request("PUT", `/conversations/${conversationId}/members/${userId}`);
    }

    async say(conversationId, plaintext) {
        return (await this.request("POST", "/messages", { conversation_id: conversationId, plaintext })).id;
    }

    async delivery(messageId) {
        return (await this.request("GET", `/messages/${messageId}`)).matrix.delivery;
    }

    /** Waits until a message has come so far. */
    async becomes(messageId, delivery) {
        await until(`message ${messageId} is ${delivery}`, async () => (await this.delivery(messageId)) === delivery);
    }
}
