// Waiting for what has to happen, and saying what did not.

export const PATIENCE_SECONDS = 60;
const PAUSE_MS = 100;

/** Something is not as it has to be. */
export class Fault extends Error {}

/** Asks until the answer is neither null nor false, and returns it. */
export async function until(what, ask, seconds = PATIENCE_SECONDS) {
    const limit = performance.now() + seconds * 1000;
    for (;;) {
        const answer = await ask();
        if (answer !== null && answer !== undefined && answer !== false) return answer;
        if (performance.now() > limit) throw new Fault(`not within ${seconds} s: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
}

export function same(what, actual, expected) {
    const [is, should] = [JSON.stringify(actual, ordered), JSON.stringify(expected, ordered)];
    if (is !== should) throw new Fault(`${what} is ${brief(is)}, and should be ${brief(should)}`);
}

/** For JSON.stringify: fields by their names, since their order says nothing. */
export const ordered = (_, value) =>
    value && typeof value === "object" && !Array.isArray(value) ? Object.fromEntries(Object.entries(value).sort()) : value;

export function holds(what, condition) {
    if (!condition) throw new Fault(`it does not hold: ${what}`);
}

// Session descriptions are never printed; ids, words and hashes are short.
const brief = (text) => (text === undefined || text.length <= 200 ? text : `${text.slice(0, 80)}… (${text.length} bytes)`);
