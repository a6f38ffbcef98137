// The calls. Ada is at a browser; Grace is at a Matrix client, and at a browser as well.

import * as expect from "./expectations.mjs";
import { holds, same, until } from "../waiting.mjs";

// What the API takes at least.
const SHORTEST_RING_MS = 30_000;

export const SCENARIOS = [
    ["a browser calls a Matrix client, which answers; the browser hangs up", (world) => answered(world, "ada")],
    ["a browser calls a Matrix client, which answers, and hangs up", (world) => answered(world, "grace")],
    ["a browser calls a Matrix client, which rejects", rejected],
    ["a browser calls a Matrix client, and cancels while that rings", cancelled],
    ["a Matrix client calls a browser, which answers; the Matrix client hangs up", fromMatrix],
    ["a Matrix client calls a browser, which rejects", fromMatrixRejected],
    ["a browser calls a Matrix client whose TURN is slow: candidates travel as events", slow],
    ["a browser calls a browser; the Matrix client that rings too is told so", betweenBrowsers],
    ["a browser calls a browser while the homeserver stands still", withoutHomeserver],
    ["a browser calls a browser while calls are kept from Matrix", (world) => keptFromMatrix(world.second)],
    ["a browser hangs up on a Matrix client while the homeserver stands still", hungUpWithoutHomeserver],
    ["a browser and a Matrix client call each other at once: one call counts", glare],
    ["a browser calls a Matrix client; each changes the call, and says what it mutes", changed],
    ["a browser calls a Matrix client, which never answers", unanswered],
    ["a Matrix client calls a Matrix client, and the API tells of it", (world) => betweenMatrixClients(world.other)],
];

/** Ada calls, and Grace's Matrix client rings. */
async function ring(world, more) {
    const { ada, grace } = world;
    const { call, sdpHash, partyId, streams } = await ada.place(world.conversationId, more);
    same("the new call", [call.status, call.direction, call.origin], ["ringing", "outgoing", "nova"]);
    same("the new call's parties", [call.initiator_id, call.invitee_id, call.party_id], [ada.id, grace.id, partyId]);
    world.calls.add(call.id);
    await grace.matrix.comesTo(call.id, "ringing");
    await expect.descriptions(grace, call.id, { offerHash: sdpHash });
    return { id: call.id, offerHash: sdpHash, party: partyId, streams, invitee: grace.matrix.userId };
}

async function answered(world, whoHangsUp) {
    const { ada, grace } = world;
    const call = await ring(world);
    await grace.matrix.answer(call.id);
    await ada.sees(call.id, { status: "active" });
    await grace.matrix.comesTo(call.id, "connected");
    const note = await expect.mediaFlows(world, [ada, call.id], [grace.matrix, call.id]);
    const { sdpHash: answerHash } = await grace.matrix.sentSdp(call.id, "m.call.answer");
    await expect.descriptions(ada, call.id, { ...call, answerHash });

    const adaHangsUp = whoHangsUp === "ada";
    await (adaHangsUp ? ada.hangup(call.id) : grace.matrix.hangup(call.id));
    await ada.sees(call.id, { status: "ended", reason: "user_hangup", connection: "closed" });
    await grace.matrix.comesTo(call.id, "ended", adaHangsUp ? { party: "remote", reason: "user_hangup" } : {});

    await afterwards(world, call, adaHangsUp);
    return note;
}

/** A call that Ada placed, Grace's Matrix client answered, and one of them hung up. */
async function afterwards(world, call, adaHangsUp, theirCandidates = [0, 100]) {
    const { ada, grace } = world;
    const end = { hangup: 1 };
    const our = expect.ours(world, call.party, { invite: 1, select_answer: 1, ...(adaHangsUp && end) });
    const their = expect.theirs(world, { answer: 1, candidates: theirCandidates, ...(!adaHangsUp && end) });
    const found = await expect.events(world, call.id, our, their);
    const sent = await grace.matrix.sentSdp(call.id, "m.call.answer");
    expect.invite(found(our, "invite"), call);
    expect.answer(found(their, "answer"), sent.sdpHash);
    expect.selected(found(our, "select_answer"), grace.matrix.deviceId);
    expect.candidates(found(our, "candidates"), { complete: true });
    same("m.call.hangup: reason", found(adaHangsUp ? our : their, "hangup")[0].content.reason, "user_hangup");

    const party = { user_id: grace.id, party_id: grace.matrix.deviceId };
    const both = { status: "ended", reason: "user_hangup", missed: false, origin: "nova", answered_by: party };
    const ended = { ended_by: adaHangsUp ? ada.id : grace.id };
    const matrix = { event_id: found(our, "invite")[0].event_id, room_id: world.roomId, delivery: "delivered" };
    await expect.report(ada, call.id, { ...both, direction: "outgoing", ...ended, matrix });
    await expect.report(grace, call.id, { ...both, direction: "incoming", ...ended });

    const hangup = adaHangsUp ? { CallHangupViaMatrix: 0 } : { CallHangupViaMatrix: 1 };
    const candidates = found(their, "candidates").length;
    const told = { CallAnswerViaMatrix: 1, CallCandidatesViaMatrix: candidates, ...hangup };
    const frames = await expect.frames(world, ada, call.id, told, { ended: "user_hangup" });
    const [frame] = frames("CallAnswerViaMatrix");
    same("the answer's frame: participant_id", frame.participant_id, grace.id);
    same("the answer's frame: party_id", frame.party_id, grace.matrix.deviceId);
    same("the answer's frame: hash of its SDP", expect.sdpHash(frame.sdp_answer), sent.sdpHash);
    same("the answer's frame: matrix_event_id", frame.matrix_event_id, found(their, "answer")[0].event_id);
    // The browser saw what the Matrix client sent, and said so itself.
    same("hash of the answer that the browser took", (await ada.ask("view", { callId: call.id })).answerHash, sent.sdpHash);
    await expect.frames(world, grace, call.id, { CallInvite: 1, CallInviteViaMatrix: 0 }, { ended: "user_hangup" });
    return found;
}

async function rejected(world) {
    const { ada, grace } = world;
    const call = await ring(world);
    await grace.matrix.reject(call.id);
    await ada.sees(call.id, { status: "ended", reason: "rejected", connection: "closed" });

    const our = expect.ours(world, call.party, { invite: 1, candidates: 0 });
    const their = expect.theirs(world, { reject: 1 });
    const found = await expect.events(world, call.id, our, their);
    expect.invite(found(our, "invite"), call);
    const both = { status: "ended", reason: "rejected", missed: false, answered_by: null, ended_by: grace.id };
    await expect.report(ada, call.id, { ...both, direction: "outgoing" });
    await expect.report(grace, call.id, { ...both, direction: "incoming" });
    await expect.frames(world, ada, call.id, { CallRejectViaMatrix: 1, CallAnswerViaMatrix: 0 }, { ended: "rejected" });
}

async function cancelled(world) {
    const { ada, grace } = world;
    const call = await ring(world);
    await ada.hangup(call.id);
    await ada.sees(call.id, { status: "ended", reason: "user_hangup", connection: "closed" });
    await grace.matrix.comesTo(call.id, "ended", { party: "remote" });

    const our = expect.ours(world, call.party, { invite: 1, hangup: 1, candidates: 0 });
    const found = await expect.events(world, call.id, our, expect.theirs(world, {}));
    expect.invite(found(our, "invite"), call);
    const both = { status: "ended", reason: "user_hangup", answered_by: null, ended_by: ada.id };
    await expect.report(ada, call.id, { ...both, direction: "outgoing", missed: false });
    await expect.report(grace, call.id, { ...both, direction: "incoming", missed: true });
    const { calls: missed } = await grace.request("GET", "/calls?missed=true&limit=1");
    same("the newest call that Grace missed", missed[0].id, call.id);
    await expect.frames(world, grace, call.id, { CallInvite: 1 }, { ended: "user_hangup" });
}

/** Grace's Matrix client calls, and Ada's browser rings. The call has an id of ours and one on Matrix. */
async function ringFromMatrix(world) {
    const { ada, grace } = world;
    const matrixId = await grace.matrix.place(world.roomId);
    const frame = await ada.rung(world.calls);
    world.calls.add(frame.call_id);
    const sent = await until("the client has sent its invite", () => grace.matrix.sentSdp(matrixId, "m.call.invite"));
    const expected = ["CallInviteViaMatrix", world.conversationId, grace.id, grace.matrix.deviceId];
    same("the ring", [frame.type, frame.conversation_id, frame.initiator_id, frame.party_id], expected);
    same("the ring's frame: hash of its SDP", expect.sdpHash(frame.sdp_offer), sent.sdpHash);
    return { id: frame.call_id, matrixId, ring: frame, offerHash: sent.sdpHash };
}

async function fromMatrix(world) {
    const { ada, grace } = world;
    const call = await ringFromMatrix(world);
    const { sdpHash: answerHash, partyId } = await ada.answer(call.id);
    await grace.matrix.comesTo(call.matrixId, "connected");
    const note = await expect.mediaFlows(world, [grace.matrix, call.matrixId], [ada, call.id]);
    await expect.descriptions(ada, call.id, { ...call, answerHash });
    await grace.matrix.hangup(call.matrixId);
    await ada.sees(call.id, { status: "ended", reason: "user_hangup", connection: "closed" });

    const our = expect.ours(world, partyId, { answer: 1 });
    const their = expect.theirs(world, { invite: 1, select_answer: 1, hangup: 1 });
    const found = await expect.events(world, call.matrixId, our, their);
    expect.answer(found(our, "answer"), answerHash);
    expect.selected(found(their, "select_answer"), partyId);
    expect.candidates(found(our, "candidates"), { complete: true });
    same("the ring's event", found(their, "invite")[0].event_id, call.ring.matrix_event_id);

    const both = { status: "ended", reason: "user_hangup", missed: false, origin: "matrix", initiator_id: grace.id };
    const answeredBy = { answered_by: { user_id: ada.id, party_id: partyId }, ended_by: grace.id };
    const party = grace.matrix.deviceId;
    const matrix = { event_id: call.ring.matrix_event_id, party_id: party, room_id: world.roomId, delivery: null };
    await expect.report(ada, call.id, { ...both, direction: "incoming", ...answeredBy, party_id: partyId, matrix });
    await expect.report(grace, call.id, { ...both, direction: "outgoing", ...answeredBy });
    const told = { CallInviteViaMatrix: 1, CallHangupViaMatrix: 1, CallInvite: 0 };
    await expect.frames(world, ada, call.id, told, { ended: "user_hangup" });
    return note;
}

async function fromMatrixRejected(world) {
    const { ada, grace } = world;
    const call = await ringFromMatrix(world);
    await ada.reject(call.id);
    await grace.matrix.comesTo(call.matrixId, "ended", { party: "remote" });

    const party = (await ada.request("GET", `/calls/${call.id}`)).party_id;
    const our = expect.ours(world, party, { reject: 1, candidates: 0 });
    await expect.events(world, call.matrixId, our, expect.theirs(world, { invite: 1 }));
    const both = { status: "ended", reason: "rejected", missed: false, answered_by: null, ended_by: ada.id };
    await expect.report(ada, call.id, { ...both, direction: "incoming" });
    await expect.report(grace, call.id, { ...both, direction: "outgoing" });
    await expect.frames(world, ada, call.id, { CallInviteViaMatrix: 1 }, { ended: "rejected" });
}

async function slow(world) {
    const { ada, grace, turn } = world;
    turn.delay = 150;
    try {
        const call = await ring(world);
        await grace.matrix.answer(call.id);
        await grace.matrix.comesTo(call.id, "connected");
        const note = await expect.mediaFlows(world, [ada, call.id], [grace.matrix, call.id]);
        await ada.hangup(call.id);
        await grace.matrix.comesTo(call.id, "ended", { party: "remote", reason: "user_hangup" });

        const sent = await grace.matrix.sentSdp(call.id, "m.call.answer");
        same("candidates in the answer itself", sent.sdpCandidates, 0);
        const found = await afterwards(world, call, true, [1, 100]);
        const their = expect.theirs(world, {});
        expect.candidates(found(their, "candidates"), { complete: false });
        return `${note}; ${found(their, "candidates").length} events with the callee's candidates`;
    } finally {
        turn.delay = 0;
    }
}

async function betweenBrowsers(world) {
    const { ada, grace } = world;
    const call = await ring(world);
    await grace.sees(call.id, { ringing: true, offerHash: call.offerHash });
    const { partyId, sdpHash: answerHash } = await grace.answer(call.id);
    await grace.matrix.comesTo(call.id, "ended", { party: "remote", reason: "answered_elsewhere" });
    const note = await expect.mediaFlows(world, [ada, call.id], [grace, call.id]);
    await grace.hangup(call.id);
    for (const user of [ada, grace]) {
        await user.sees(call.id, { status: "ended", reason: "user_hangup", connection: "closed" });
    }

    // Whether those who were told that it was answered elsewhere are told of its end is of no account.
    const our = expect.ours(world, call.party, { invite: 1, select_answer: 1, hangup: [0, 1], candidates: 0 });
    const found = await expect.events(world, call.id, our, expect.theirs(world, {}));
    expect.invite(found(our, "invite"), call);
    expect.selected(found(our, "select_answer"), partyId);
    await reportBetweenBrowsers(world, call, partyId);
    const told = { CallAnswer: 1, CallAnswerViaMatrix: 0, CallHangup: 1 };
    await expect.frames(world, ada, call.id, told, { ended: "user_hangup" });
    same("hash of the answer that the browser took", (await ada.ask("view", { callId: call.id })).answerHash, answerHash);
    await expect.frames(world, grace, call.id, { CallInvite: 1, CallCandidates: [1, 100] }, { ended: "user_hangup" });
    return note;
}

/** A call between two browsers that Grace hung up. */
async function reportBetweenBrowsers({ ada, grace }, call, graceParty) {
    const both = { status: "ended", reason: "user_hangup", missed: false, origin: "nova", ended_by: grace.id };
    const answeredBy = { answered_by: { user_id: grace.id, party_id: graceParty } };
    await expect.report(ada, call.id, { ...both, direction: "outgoing", ...answeredBy, party_id: call.party });
    await expect.report(grace, call.id, { ...both, direction: "incoming", ...answeredBy, party_id: graceParty });
}

async function withoutHomeserver(world) {
    const { ada, grace, homeserver } = world;
    let call;
    let note;
    homeserver.freeze();
    try {
        const { call: placed, sdpHash: offerHash, partyId: party } = await ada.place(world.conversationId);
        call = { id: placed.id, party };
        world.calls.add(call.id);
        await grace.sees(call.id, { ringing: true, offerHash });
        const { partyId } = await grace.answer(call.id);
        note = await expect.mediaFlows(world, [ada, call.id], [grace, call.id]);
        await grace.hangup(call.id);
        for (const user of [ada, grace]) {
            await user.sees(call.id, { status: "ended", reason: "user_hangup", connection: "closed" });
        }
        await reportBetweenBrowsers(world, call, partyId);
        await expect.frames(world, ada, call.id, { CallAnswer: 1, CallHangup: 1 }, { ended: "user_hangup" });
        await expect.frames(world, grace, call.id, { CallInvite: 1, CallHangup: [0, 1] }, { ended: "user_hangup" });
    } finally {
        homeserver.thaw();
    }
    // What was on its way to the homeserver may arrive now. Then so does the call's end, and nothing goes on ringing.
    const delivery = await until("it is known what became of the invite", async () => {
        const { matrix } = await ada.request("GET", `/calls/${call.id}`);
        return !["pending", "delivering"].includes(matrix.delivery) && matrix.delivery;
    });
    const invites = delivery === "delivered" ? 1 : 0;
    const told = { invite: invites, select_answer: [0, 1], hangup: [0, 1], candidates: 0 };
    const our = expect.ours(world, call.party, told);
    await until("a ring that may have been heard is taken back", async () => {
        const types = (await grace.matrix.events(world.roomId, call.id)).map(({ type }) => type);
        return invites === 0 || types.includes("m.call.hangup") || types.includes("m.call.select_answer");
    });
    await expect.events(world, call.id, our, expect.theirs(world, {}));
    await until("no Matrix client rings any more", () => {
        const state = grace.matrix.calls.get(call.id)?.state;
        return state === undefined || state === "ended";
    });
    holds("the invite was not lost", ["delivered", "cancelled", "expired"].includes(delivery));
    return `${note}; the invite was ${delivery}`;
}

async function keptFromMatrix(world) {
    const { ada, grace } = world;
    const { call: placed, sdpHash: offerHash, partyId: party } = await ada.place(world.conversationId);
    const call = { id: placed.id, party };
    world.calls.add(call.id);
    await grace.sees(call.id, { ringing: true, offerHash });
    const { partyId } = await grace.answer(call.id);
    const note = await expect.mediaFlows(world, [ada, call.id], [grace, call.id]);
    await grace.hangup(call.id);
    for (const user of [ada, grace]) {
        await user.sees(call.id, { status: "ended", reason: "user_hangup", connection: "closed" });
    }
    await reportBetweenBrowsers(world, call, partyId);
    await expect.report(ada, call.id, { matrix: { event_id: null, delivery: "disabled" } });
    await expect.events(world, call.id, expect.side(world.serviceUser, party, {}), expect.theirs(world, {}));
    await expect.frames(world, ada, call.id, { CallAnswer: 1, CallHangup: 1 }, { ended: "user_hangup" });
    return note;
}

async function hungUpWithoutHomeserver(world) {
    const { ada, grace, homeserver } = world;
    const call = await ring(world);
    await grace.matrix.answer(call.id);
    const note = await expect.mediaFlows(world, [ada, call.id], [grace.matrix, call.id]);
    homeserver.freeze();
    try {
        await ada.hangup(call.id);
        await ada.sees(call.id, { status: "ended", reason: "user_hangup", connection: "closed" });
    } finally {
        homeserver.thaw();
    }
    await grace.matrix.comesTo(call.id, "ended", { party: "remote", reason: "user_hangup" });
    await afterwards(world, call, true);
    return note;
}

/** The lesser id counts, as for Matrix clients among themselves. Ours begin with "0", the client's with "1". */
async function glare(world) {
    const { ada, grace } = world;
    const [call, matrixId] = await Promise.all([ring(world), grace.matrix.place(world.roomId)]);
    await grace.matrix.comesTo(matrixId, "ended", { party: "remote" });
    await grace.matrix.answer(call.id);
    const note = await expect.mediaFlows(world, [ada, call.id], [grace.matrix, call.id]);

    const lost = await until("the API knows of both calls", async () => {
        const { calls } = await ada.request("GET", `/calls?conversation_id=${world.conversationId}`);
        return calls.find(({ id }) => !world.calls.has(id));
    });
    world.calls.add(lost.id);
    const end = { status: "ended", reason: "glare", origin: "matrix", initiator_id: grace.id, replaced_by: call.id };
    same("the call that lost", Object.fromEntries(Object.keys(end).map((field) => [field, lost[field]])), end);
    // No device of ours was in that call; who rejects it is a party that exists for this alone.
    const events = await grace.matrix.events(world.roomId, matrixId);
    const party = events.find(({ sender }) => sender === world.serviceUser)?.content.party_id;
    const losing = expect.ours(world, party, { reject: 1, candidates: 0 });
    await expect.events(world, matrixId, losing, expect.theirs(world, { invite: 1 }));

    await ada.hangup(call.id);
    await grace.matrix.comesTo(call.id, "ended", { party: "remote", reason: "user_hangup" });
    const told = { invite: 1, select_answer: 1, hangup: 1 };
    const our = expect.ours(world, call.party, told);
    const found = await expect.events(world, call.id, our, expect.theirs(world, { answer: 1 }));
    expect.selected(found(our, "select_answer"), grace.matrix.deviceId);
    return note;
}

async function changed(world) {
    const { ada, grace } = world;
    const call = await ring(world);
    await grace.matrix.answer(call.id);
    const note = await expect.mediaFlows(world, [ada, call.id], [grace.matrix, call.id]);

    await ada.ask("stopCamera", { callId: call.id });
    await ada.sees(call.id, { directions: "sendrecv recvonly" });
    await grace.matrix.ask("hold", { callId: call.id });
    await ada.sees(call.id, { directions: "recvonly recvonly" });
    const { streams } = await ada.ask("mute", { callId: call.id });
    const shown = () => grace.matrix.ask("remote", { callId: call.id });
    await until("Grace's Matrix client shows that Ada is muted", async () => {
        const feeds = await shown();
        return feeds.length === 1 && feeds[0].audio && feeds[0].video && feeds[0].purpose === "m.usermedia";
    });

    const told = { invite: 1, select_answer: 1, negotiate: 2, sdp_stream_metadata_changed: 1, candidates: 1 };
    const our = expect.ours(world, call.party, { ...told, hangup: [0, 1] });
    const changes = { negotiate: 2, sdp_stream_metadata_changed: 1 };
    const their = expect.theirs(world, { answer: 1, ...changes });
    const found = await expect.events(world, call.id, our, their);
    expect.invite(found(our, "invite"), call);
    const { negotiated, theirStreams } = await ada.ask("view", { callId: call.id });
    const order = ["our offer", "their answer", "their offer", "our answer"];
    same("who negotiated what", negotiated.map(([what]) => what), order);
    const [ourOffer, theirAnswer, theirOffer, ourAnswer] = negotiated.map(([, hash]) => hash);
    expect.negotiations(found(our, "negotiate"), [["offer", ourOffer], ["answer", ourAnswer]]);
    expect.negotiations(found(their, "negotiate"), [["answer", theirAnswer], ["offer", theirOffer]]);
    const sent = await grace.matrix.sent(call.id, "m.call.negotiate");
    same("hashes of what the Matrix client sent", sent.map(({ sdpHash }) => sdpHash), [theirAnswer, theirOffer]);
    const metadata = ({ content }) => content.sdp_stream_metadata;
    same("what our streams are", found(our, "sdp_stream_metadata_changed").map(metadata), [streams]);
    same("what their streams are", found(their, "sdp_stream_metadata_changed").map(metadata), [theirStreams]);

    await ada.hangup(call.id);
    await grace.matrix.comesTo(call.id, "ended", { party: "remote", reason: "user_hangup" });
    await expect.frames(world, ada, call.id, { CallSignalViaMatrix: 3 }, { ended: "user_hangup" });
    return note;
}

async function unanswered(world) {
    const { ada, grace } = world;
    const call = await ring(world, { lifetimeMs: SHORTEST_RING_MS });
    await ada.sees(call.id, { status: "ended", reason: "invite_timeout", connection: "closed" });
    await grace.matrix.comesTo(call.id, "ended");

    // Its own clock may have ended the client's ringing; whose has not, has this to hear.
    const our = expect.ours(world, call.party, { invite: 1, hangup: 1 });
    const found = await expect.events(world, call.id, our, expect.theirs(world, {}));
    expect.invite(found(our, "invite"), { ...call, longest: SHORTEST_RING_MS });
    same("m.call.hangup: reason", found(our, "hangup")[0].content.reason, "invite_timeout");
    const both = { status: "ended", reason: "invite_timeout", answered_by: null, ended_by: null };
    await expect.report(ada, call.id, { ...both, direction: "outgoing", missed: false });
    await expect.report(grace, call.id, { ...both, direction: "incoming", missed: true });
    await expect.frames(world, grace, call.id, { CallInvite: 1 }, { ended: "invite_timeout" });
}

/** Grace and Linus have a conversation of their own, in whose room they call each other. We only look on. */
async function betweenMatrixClients(world) {
    const { grace, linus } = world;
    const matrixId = await grace.matrix.place(world.roomId);
    await linus.matrix.comesTo(matrixId, "ringing");
    const call = await until("the API knows of the call", async () => {
        const { calls } = await linus.request("GET", `/calls?conversation_id=${world.conversationId}`);
        return calls.find(({ id }) => !world.calls.has(id));
    });
    world.calls.add(call.id);
    await linus.matrix.answer(matrixId);
    for (const { matrix } of [grace, linus]) await matrix.comesTo(matrixId, "connected");
    const note = await expect.mediaFlows(world, [grace.matrix, matrixId], [linus.matrix, matrixId]);
    await linus.matrix.hangup(matrixId);
    await grace.matrix.comesTo(matrixId, "ended", { party: "remote" });

    const caller = expect.theirs(world, { invite: 1, select_answer: 1 });
    const callee = expect.theirs(world, { answer: 1, hangup: 1 }, linus);
    const found = await expect.events(world, matrixId, expect.side(world.serviceUser, "", {}), caller, callee);
    expect.selected(found(caller, "select_answer"), linus.matrix.deviceId);
    const both = { status: "ended", reason: "user_hangup", missed: false, origin: "matrix", initiator_id: grace.id };
    const answeredBy = { answered_by: { user_id: linus.id, party_id: linus.matrix.deviceId }, ended_by: linus.id };
    await expect.report(grace, call.id, { ...both, direction: "outgoing", ...answeredBy });
    await expect.report(linus, call.id, { ...both, direction: "incoming", ...answeredBy });
    return note;
}
