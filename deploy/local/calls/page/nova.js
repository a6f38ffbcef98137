// A Nova client, as small as one can be: the REST and WebSocket API, and the browser's own RTCPeerConnection.

import { summary } from "./statistics.mjs";

const CANDIDATES_MS = 100;
const MEDIA = { audio: true, video: { width: 160, height: 120, frameRate: 10 } };
const REQUEST_MS = 30_000;

class Nova {
    /** Every frame that came, as it came. */
    frames = [];
    calls = new Map();
    problems = [];
    #answers = new Map();
    // Frames are dealt with one after the other.
    #work = Promise.resolve();

    /** `speaks`: whether requests about calls go by "rest" or by "websocket". Candidates always go by WebSocket. */
    async connect({ token, userId, speaks }) {
        Object.assign(this, { token, userId, speaks });
        const url = `ws://${location.host}/ws`;
        this.socket = new WebSocket(url, ["matrix-outbox", `bearer.${token}`]);
        this.socket.onclose = ({ code }) => this.problems.push(`the WebSocket was closed with ${code}`);
        await new Promise((resolve, reject) => {
            this.socket.onerror = () => reject(new Error("no WebSocket"));
            this.socket.onmessage = ({ data }) => {
                const frame = JSON.parse(data);
                if (frame.type === "ready") resolve();
                this.#take(frame);
            };
        });
    }

    /** Calls; resolves with the answer to the request. */
    async place({ conversationId, lifetimeMs }) {
        // What comes for the call may come before the answer that names it.
        const placed = Promise.withResolvers();
        this.#work = this.#work.then(() => placed.promise);
        try {
            const call = newCall();
            await this.#equip(call);
            await call.peer.setLocalDescription(await call.peer.createOffer());
            const sdp = call.peer.localDescription.sdp;
            const body = {
                conversation_id: conversationId,
                party_id: call.partyId,
                sdp_offer: sdp,
                sdp_stream_metadata: streams(call),
                ...(lifetimeMs && { lifetime_ms: lifetimeMs }),
            };
            const answer = await this.#ask("CallInitiate", "/calls/initiate", body);
            this.calls.set(answer.id, Object.assign(call, { id: answer.id, status: answer.status, mayTrickle: true }));
            this.#sendCandidates(call);
            return { call: answer, sdpHash: await hash(sdp), partyId: call.partyId, streams: streams(call) };
        } finally {
            placed.resolve();
        }
    }

    async answer({ callId }) {
        const call = this.calls.get(callId);
        await this.#equip(call);
        await call.peer.setRemoteDescription({ type: "offer", sdp: call.offer });
        await this.#useEarly(call);
        await call.peer.setLocalDescription(await call.peer.createAnswer());
        const sdp = call.peer.localDescription.sdp;
        const body = { party_id: call.partyId, sdp_answer: sdp, sdp_stream_metadata: streams(call) };
        const answer = await this.#ask("CallAnswer", `/calls/${callId}/answer`, body, callId);
        call.mayTrickle = true;
        this.#sendCandidates(call);
        return { call: answer, sdpHash: await hash(sdp), partyId: call.partyId, streams: streams(call) };
    }

    /** Stops sending pictures, for which both sides have to negotiate. */
    async stopCamera({ callId }) {
        const call = this.calls.get(callId);
        const camera = call.peer.getTransceivers().find(({ sender }) => sender.track?.kind === "video");
        camera.direction = "recvonly";
        await call.peer.setLocalDescription(await call.peer.createOffer());
        await this.#negotiate(call);
    }

    /** Says that it is muted; nothing has to be negotiated for that. */
    async mute({ callId }) {
        const call = this.calls.get(callId);
        call.muted = true;
        const body = { party_id: call.partyId, sdp_stream_metadata: streams(call) };
        await this.#ask("CallMetadata", `/calls/${callId}/metadata`, body, callId);
        return { streams: streams(call) };
    }

    async reject({ callId }) {
        return this.#ask("CallReject", `/calls/${callId}/reject`, {}, callId);
    }

    async hangup({ callId }) {
        const { partyId } = this.calls.get(callId);
        return this.#ask("CallHangup", `/calls/${callId}/hangup`, { party_id: partyId, reason: "user_hangup" }, callId);
    }

    async statistics({ callId }) {
        const peer = this.calls.get(callId)?.peer;
        return peer ? summary([...(await peer.getStats()).values()]) : summary([]);
    }

    /** What this client knows of a call; null while it knows nothing. */
    view({ callId }) {
        const call = this.calls.get(callId);
        if (!call) return null;
        const { status, reason, ringing, offerHash, answerHash, negotiated, theirStreams, peer } = call;
        const connection = peer?.connectionState ?? null;
        const directions = (peer?.getTransceivers() ?? []).map(({ currentDirection }) => currentDirection).join(" ");
        return { status, reason, ringing, offerHash, answerHash, negotiated, theirStreams, connection, directions };
    }

    // Frames.

    #take(frame) {
        this.frames.push(frame);
        if (frame.type === "ack" || frame.type === "error") {
            this.#answers.get(frame.request_id)?.(frame);
            return;
        }
        this.#work = this.#work
            .then(() => this.#handle(frame))
            .catch((error) => this.problems.push(`${frame.type}: ${error.message}`));
    }

    async #handle(frame) {
        const mine = frame.participant_id === this.userId && frame.party_id === this.calls.get(frame.call_id)?.partyId;
        switch (frame.type.replace(/ViaMatrix$/, "")) {
            case "CallInvite":
                if (frame.initiator_id !== this.userId) await this.#ring(frame);
                return;
            case "CallAnswer":
                if (!mine) await this.#answered(frame);
                return;
            case "CallCandidates":
                if (!mine) await this.#candidates(frame);
                return;
            case "CallSignal":
                if (!mine) await this.#signal(frame);
                return;
            case "CallUpdated":
                this.#updated(frame.call);
        }
    }

    async #ring(frame) {
        const call = this.#call(frame.call_id);
        call.ringing = true;
        call.offer = frame.sdp_offer;
        call.theirParty = frame.party_id;
        call.offerHash = await hash(frame.sdp_offer);
    }

    async #answered(frame) {
        const call = this.#call(frame.call_id);
        if (call.peer?.signalingState !== "have-local-offer") return;
        call.theirParty = frame.party_id;
        call.answerHash = await hash(frame.sdp_answer);
        await call.peer.setRemoteDescription({ type: "answer", sdp: frame.sdp_answer });
        await this.#useEarly(call);
    }

    async #candidates(frame) {
        const call = this.#call(frame.call_id);
        call.early.push(frame);
        if (call.peer?.remoteDescription) await this.#useEarly(call);
    }

    async #signal({ call_id: callId, party_id: partyId, kind, content }) {
        const call = this.#call(callId);
        if (!call.peer || partyId !== call.theirParty) return;
        if (kind === "sdp_stream_metadata_changed") call.theirStreams = content.sdp_stream_metadata;
        if (kind !== "negotiate") return;
        call.negotiated.push([`their ${content.description.type}`, await hash(content.description.sdp)]);
        await call.peer.setRemoteDescription(content.description);
        if (content.description.type !== "offer") return;
        await call.peer.setLocalDescription(await call.peer.createAnswer());
        await this.#negotiate(call);
    }

    async #negotiate(call) {
        const { type, sdp } = call.peer.localDescription;
        call.negotiated.push([`our ${type}`, await hash(sdp)]);
        const body = { party_id: call.partyId, description: { type, sdp }, sdp_stream_metadata: streams(call) };
        await this.#ask("CallNegotiate", `/calls/${call.id}/negotiate`, body, call.id);
    }

    /** Candidates may come before the description that they belong to. */
    async #useEarly(call) {
        while (call.early.length > 0) {
            const frame = call.early.shift();
            if (frame.party_id !== call.theirParty) continue;
            for (const candidate of frame.candidates) await call.peer.addIceCandidate(candidate);
        }
    }

    #updated({ id, status, reason }) {
        const call = this.#call(id);
        Object.assign(call, { status, reason });
        if (status === "ended") this.#close(call);
    }

    #call(id) {
        if (!this.calls.has(id)) this.calls.set(id, { ...newCall(), id });
        return this.calls.get(id);
    }

    // The peer connection.

    async #equip(call) {
        const iceServers = await this.#iceServers(call.id);
        const peer = new RTCPeerConnection({ iceServers, iceTransportPolicy: "relay" });
        Object.assign(call, { peer, partyId: `nova-${crypto.randomUUID()}` });
        // With credentials that are refused the connection stays "new" for ever; this event is all that tells.
        peer.onicecandidateerror = ({ errorCode }) => {
            if (errorCode === 401 || errorCode === 403) this.problems.push(`TURN answered with ${errorCode}`);
        };
        peer.onicecandidate = ({ candidate }) => {
            call.found.push(candidate?.toJSON() ?? { candidate: "" });
            this.#sendCandidates(call);
        };
        peer.ontrack = ({ streams }) => (document.getElementById("remote").srcObject = streams[0]);
        call.media = await navigator.mediaDevices.getUserMedia(MEDIA);
        for (const track of call.media.getTracks()) peer.addTrack(track, call.media);
    }

    #sendCandidates(call) {
        if (!call.mayTrickle || call.sending) return;
        call.sending = true;
        setTimeout(async () => {
            call.sending = false;
            const candidates = call.found.splice(0);
            if (candidates.length === 0 || call.status === "ended") return;
            try {
                await this.#request("CallCandidates", { call_id: call.id, party_id: call.partyId, candidates });
            } catch (error) {
                if (call.status !== "ended" && error.code !== "call_ended") this.problems.push(error.message);
            }
        }, CANDIDATES_MS);
    }

    #close(call) {
        call.peer?.close();
        for (const track of call.media?.getTracks() ?? []) track.stop();
    }

    // Requests.

    async #iceServers(callId) {
        const answer = await this.#rest("GET", `/calls/ice_servers${callId ? `?call_id=${callId}` : ""}`);
        return answer.ice_servers;
    }

    async #ask(type, path, body, callId) {
        if (this.speaks === "rest") return this.#rest("POST", path, body);
        return (await this.#request(type, { ...(callId && { call_id: callId }), ...body })).call;
    }

    async #rest(method, path, body) {
        const headers = { Authorization: `Bearer ${this.token}` };
        if (body) Object.assign(headers, { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() });
        const response = await fetch(`/api${path}`, { method, headers, body: body && JSON.stringify(body) });
        const answer = await response.json();
        if (!response.ok) throw refused(`${method} ${path.split("?")[0]}`, answer);
        return answer;
    }

    async #request(type, fields) {
        const requestId = crypto.randomUUID();
        const frame = { type, request_id: requestId, idempotency_key: crypto.randomUUID(), ...fields };
        const answer = await new Promise((resolve, reject) => {
            setTimeout(() => reject(new Error(`${type} was not answered`)), REQUEST_MS);
            this.#answers.set(requestId, resolve);
            this.socket.send(JSON.stringify(frame));
        });
        this.#answers.delete(requestId);
        if (answer.type === "error") throw refused(type, answer.problem);
        return answer;
    }
}

function newCall() {
    const lists = { early: [], found: [], negotiated: [] };
    return { id: null, status: null, reason: null, ringing: false, mayTrickle: false, muted: false, ...lists };
}

/** What the streams that a call sends are. */
function streams({ media, muted }) {
    return { [media.id]: { purpose: "m.usermedia", audio_muted: muted, video_muted: muted } };
}

function refused(what, problem) {
    const fields = (problem.errors ?? []).map(({ field, reason }) => `${field}: ${reason}`);
    const error = new Error([`${what} was refused: ${problem.status} ${problem.code}`, ...fields].join(", "));
    error.code = problem.code;
    return error;
}

async function hash(text) {
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
    return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

window.nova = new Nova();
