// What matrix-js-sdk's calls expect of a browser, on Node: WebRTC by wrtc, and a camera and a microphone that are made up.

import wrtc from "@roamhq/wrtc";

const SAMPLE_RATE = 48_000;
// wrtc takes sound in pieces of 10 ms only.
const SOUND_MS = 10;
const TONE_HZ = 440;
const WIDTH = 160;
const HEIGHT = 120;
const FRAME_MS = 100;

/** Puts them where the SDK looks. Must run before the SDK is imported. */
export function install() {
    const { RTCPeerConnection, RTCSessionDescription, RTCIceCandidate, RTCRtpSender, RTCRtpReceiver } = wrtc;
    const { MediaStream, MediaStreamTrack } = wrtc;
    MediaStreamTrack.prototype.getSettings ??= () => ({});
    Object.assign(globalThis, {
        RTCPeerConnection,
        RTCSessionDescription,
        RTCIceCandidate,
        RTCRtpSender,
        RTCRtpReceiver,
        MediaStream,
        MediaStreamTrack,
        AudioContext: SilentAudioContext,
        window: globalThis,
        document: {},
    });
    const mediaDevices = { enumerateDevices, getUserMedia, addEventListener() {}, removeEventListener() {} };
    // Newer versions of Node have a navigator of their own, without devices, that cannot be assigned.
    Object.defineProperty(globalThis, "navigator", { value: { mediaDevices }, configurable: true });
}

/** The SDK measures how loud a feed is; nobody here looks at that. */
class SilentAudioContext {
    createAnalyser() {
        return { frequencyBinCount: 1, getFloatFrequencyData() {}, disconnect() {} };
    }
    createMediaStreamSource() {
        return { connect() {}, disconnect() {} };
    }
    async close() {}
}

// Without devices the SDK asks for no media, answers "recvonly", and calls that connected.
async function enumerateDevices() {
    return [
        { kind: "audioinput", deviceId: "tone", label: "tone", groupId: "" },
        { kind: "videoinput", deviceId: "ramp", label: "ramp", groupId: "" },
    ];
}

async function getUserMedia({ audio, video }) {
    const stream = new wrtc.MediaStream();
    if (audio) stream.addTrack(tone());
    if (video) stream.addTrack(ramp());
    return stream;
}

function tone() {
    const source = new wrtc.nonstandard.RTCAudioSource();
    const track = source.createTrack();
    const count = (SAMPLE_RATE * SOUND_MS) / 1000;
    let at = 0;
    repeat(track, SOUND_MS, () => {
        const samples = Int16Array.from({ length: count }, () =>
            Math.round(8000 * Math.sin((2 * Math.PI * TONE_HZ * at++) / SAMPLE_RATE)),
        );
        source.onData({
            samples,
            sampleRate: SAMPLE_RATE,
            bitsPerSample: 16,
            channelCount: 1,
            numberOfFrames: count,
        });
    });
    return track;
}

function ramp() {
    const source = new wrtc.nonstandard.RTCVideoSource();
    const track = source.createTrack();
    const data = new Uint8ClampedArray((WIDTH * HEIGHT * 3) / 2).fill(128);
    let frame = 0;
    repeat(track, FRAME_MS, () => {
        frame += 1;
        for (let i = 0; i < WIDTH * HEIGHT; i++) data[i] = (i + 5 * frame) % 256;
        source.onFrame({ width: WIDTH, height: HEIGHT, data });
    });
    return track;
}

function repeat(track, milliseconds, work) {
    const timer = setInterval(() => (track.readyState === "ended" ? clearInterval(timer) : work()), milliseconds);
    timer.unref();
}
