// What a report of WebRTC says about media, the same for Chromium and for wrtc.

/**
 * Bytes of media that came and went, by kind, how many pictures could be shown, and the pair of candidates that carries
 * all that.
 *
 * Also runs inside of the page, so it uses nothing from outside of itself.
 */
export function summary(entries) {
    const byId = new Map(entries.map((entry) => [entry.id, entry]));
    const received = { audio: 0, video: 0 };
    const sent = { audio: 0, video: 0 };
    let pictures = 0;
    for (const entry of entries) {
        const kind = entry.kind ?? entry.mediaType;
        if (entry.type === "inbound-rtp") received[kind] += entry.bytesReceived;
        if (entry.type === "inbound-rtp" && kind === "video") pictures += entry.framesDecoded ?? 0;
        if (entry.type === "outbound-rtp") sent[kind] += entry.bytesSent;
    }
    const transport = entries.find((entry) => entry.type === "transport" && entry.selectedCandidatePairId);
    const chosen = transport && byId.get(transport.selectedCandidatePairId);
    const candidate = (id) => {
        const { candidateType, port, address, ip } = byId.get(id) ?? {};
        return { type: candidateType, address: address ?? ip, port };
    };
    const pair = chosen && { local: candidate(chosen.localCandidateId), remote: candidate(chosen.remoteCandidateId) };
    return { received, sent, pictures, pair: pair ?? null };
}
