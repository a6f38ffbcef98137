//! What was just done, in words: an act leads to a page that says so, by a word and a number in its address, never a text.

use super::html::count;
use crate::admin::params::Params;

/// What `?done=…&n=…` says.
pub(super) fn note(params: &mut Params) -> Option<String> {
    let done = params.text("done");
    let n: u64 = params.parsed("n", "must be a number").unwrap_or(0);
    let operations = count(n, "operation");
    Some(match done?.as_str() {
        "requeued" => format!("{operations} came back. Workers send what is there in its order."),
        "discarded" => format!("{operations} discarded."),
        "expired" => format!("{operations} expired: not sent any more."),
        "completed" => "Completed by hand: it counts as delivered.".to_owned(),
        "paused" => "Paused. What is on the wire is finished; nothing more is claimed.".to_owned(),
        "resumed" => {
            format!("Resumed: {} ended.", count(n, "pause or hold").replace("pause or holds", "pauses or holds"))
        }
        "nothing_resumed" => "There was nothing to resume.".to_owned(),
        "more_held" => format!("{} resumed; there are more: resume again.", count(n, "lane")),
        "cancelled" => "The task is cancelled. What it did stays done.".to_owned(),
        "ended_before" => "The task had ended already.".to_owned(),
        "started" => "Started. This page follows it.".to_owned(),
        _ => return None,
    })
}
