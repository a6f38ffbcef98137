//! Is it healthy? One sentence, and what else is to be said, the worst first.

use shared::outbox::Counted;

use super::html::{self, Tone};

/// How long the oldest operation of a class may wait before somebody should look, in seconds. A call that is not heard of
/// for so long rings in vain.
const CALL_WAITS: i64 = 10;
const CHAT_WAITS: i64 = 60;

/// What is known of a class.
#[derive(Debug, Clone, Default)]
pub(super) struct Class {
    pub(super) name: &'static str,
    /// How long its oldest operation has waited, in seconds.
    pub(super) oldest: i64,
    pub(super) waiting: i64,
}

/// A pause of everything or of a class.
#[derive(Debug, Clone)]
pub(super) struct Pause {
    pub(super) what: String,
    pub(super) since: String,
    pub(super) until: Option<String>,
    pub(super) reason: String,
}

/// What the workers say of themselves.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Workers {
    pub(super) there: usize,
    /// Whose circuit is open: the homeserver does not answer them.
    pub(super) cut_off: usize,
    /// Whose token the homeserver does not accept.
    pub(super) locked_out: usize,
    /// For whom Matrix is switched off.
    pub(super) disabled: usize,
}

/// All that counts.
#[derive(Debug, Clone)]
pub(super) struct Vitals {
    pub(super) classes: Vec<Class>,
    pub(super) pauses: Vec<Pause>,
    /// None when nobody knows.
    pub(super) workers: Option<Workers>,
    pub(super) held: Counted,
    pub(super) dead: Counted,
    /// When the last of them died.
    pub(super) last_death: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) tone: Tone,
    pub(super) sentence: String,
    /// What else is to be said.
    pub(super) also: Vec<String>,
}

/// Whether the oldest of a class has waited longer than it should.
pub(super) fn is_late(class: &str, oldest: i64) -> bool {
    oldest > if class == "call" { CALL_WAITS } else { CHAT_WAITS }
}

/// Judges what is known, the worst first.
pub(super) fn judge(vitals: &Vitals) -> Verdict {
    let mut said: Vec<(Tone, String)> = Vec::new();
    let mut say = |tone, sentence: String| said.push((tone, sentence));
    if let Some(workers) = vitals.workers {
        let all = workers.there;
        let of_all = |n: usize| if n == all { "no worker".to_owned() } else { format!("{n} of {all} workers do not") };
        if all == 0 {
            say(Tone::Bad, "No worker has been seen lately: nothing is sent.".to_owned());
        }
        if workers.locked_out > 0 {
            let who = if workers.locked_out == all {
                "the workers'".to_owned()
            } else {
                format!("{} of {all} workers'", workers.locked_out)
            };
            say(Tone::Bad, format!("The homeserver does not accept {who} token: renew MATRIX_ACCESS_TOKEN."));
        }
        if workers.cut_off > 0 {
            let words = if workers.cut_off == all {
                "The homeserver does not answer: the workers hold back and probe until it does; nothing is lost."
                    .to_owned()
            } else {
                format!("The homeserver does not answer everybody: {} reach it.", of_all(workers.cut_off))
            };
            say(Tone::Bad, words);
        }
        if all > 0 && workers.disabled == all {
            say(Tone::Warn, "Matrix is switched off: what was enqueued waits.".to_owned());
        }
    }
    for pause in &vitals.pauses {
        let until = pause
            .until
            .as_ref()
            .map_or_else(|| "until somebody resumes it".to_owned(), |until| format!("until {until}"));
        say(Tone::Warn, format!("{} is paused since {}, {until}: {}.", pause.what, pause.since, pause.reason));
    }
    for class in &vitals.classes {
        if is_late(class.name, class.oldest) {
            let what = if class.name == "call" { "Calls are" } else { "Chat is" };
            let waiting = html::count(class.waiting, "operation");
            let oldest = html::lasting(class.oldest);
            say(Tone::Warn, format!("{what} behind: the oldest has waited {oldest}; {waiting} wait."));
        }
    }
    let wait = |counted: Counted, one: &str, many: &str, what: &str| {
        if counted.count == 1 {
            format!("1 {one} waits for {what}.")
        } else {
            format!("{counted} {many} wait for {what}.")
        }
    };
    if vitals.held.count > 0 {
        say(Tone::Warn, wait(vitals.held, "held lane", "held lanes", "somebody"));
    }
    if vitals.dead.count > 0 {
        let last = vitals.last_death.as_ref().map(|last| format!(", the last since {last}")).unwrap_or_default();
        say(Tone::Warn, wait(vitals.dead, "dead letter", "dead letters", &format!("a decision{last}")));
    }
    let mut said = said.into_iter();
    match said.next() {
        Some((tone, sentence)) => Verdict { tone, sentence, also: said.map(|(_, sentence)| sentence).collect() },
        None => Verdict {
            tone: Tone::Good,
            sentence: "All is well: nothing waits longer than it should.".to_owned(),
            also: Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Vitals {
        let none = Counted { count: 0, more: false };
        Vitals { classes: Vec::new(), pauses: Vec::new(), workers: None, held: none, dead: none, last_death: None }
    }

    #[test]
    fn the_worst_is_said_first_and_the_rest_after_it() {
        assert_eq!(judge(&well()).tone, Tone::Good);
        let vitals = Vitals {
            classes: vec![
                Class { name: "chat", oldest: 61, waiting: 7 },
                Class { name: "call", oldest: 9, waiting: 1 },
            ],
            workers: Some(Workers { there: 2, cut_off: 2, ..Workers::default() }),
            dead: Counted { count: 3, more: false },
            ..well()
        };
        let verdict = judge(&vitals);
        assert_eq!(verdict.tone, Tone::Bad);
        assert!(verdict.sentence.contains("does not answer"), "{}", verdict.sentence);
        assert_eq!(verdict.also.len(), 2, "{:?}", verdict.also);
        assert!(verdict.also[0].contains("61 s") || verdict.also[0].contains("1 min 1 s"), "{:?}", verdict.also);
    }

    #[test]
    fn without_workers_nothing_is_well() {
        let vitals = Vitals { workers: Some(Workers::default()), ..well() };
        assert_eq!(judge(&vitals).tone, Tone::Bad);
    }
}
