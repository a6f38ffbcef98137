//! What happened, as a table.

use shared::{
    ids::OutboxId,
    outbox::{Moment, MomentKind},
};

use super::{
    html::{self, Markup, Tone},
    table::Table,
};

pub(super) fn table(caption: &str, moments: &[Moment]) -> Table {
    let heads = &["At", "What", "Happened", "On", "By", "Status", "Code", "Took"];
    let mut table = Table::new("timeline", caption, heads).or("Nothing happened.");
    for (n, moment) in moments.iter().enumerate() {
        let on = moment.outbox_id.map(OutboxId::as_uuid).or(moment.subject_id);
        table.row(
            n,
            vec![
                html::at(moment.at),
                what(moment),
                words(moment),
                on.map_or_else(html::dash, |id| html::link(&format!("/console/operations/{id}"), &html::id(id))),
                moment.by.as_ref().map_or_else(html::dash, html::id),
                html::or_dash(moment.http_status),
                html::code_or_dash(moment.errcode.as_ref()),
                html::or_dash(moment.duration_ms.map(|took| format!("{} ms", html::grouped(took)))),
            ],
        );
    }
    table
}

fn what(moment: &Moment) -> Markup {
    let went_well = moment.errcode.is_none() && moment.http_status.is_none_or(|status| status < 400);
    let (tone, word) = match moment.kind {
        MomentKind::Written => (Tone::Quiet, "written"),
        MomentKind::Edited => (Tone::Quiet, "edited"),
        MomentKind::Deleted => (Tone::Quiet, "deleted"),
        MomentKind::Enqueued => (Tone::Quiet, "enqueued"),
        MomentKind::Attempt if went_well => (Tone::Quiet, "attempt"),
        MomentKind::Attempt => (Tone::Warn, "attempt"),
        MomentKind::Delivered => (Tone::Good, "delivered"),
        MomentKind::Died => (Tone::Bad, "died"),
        MomentKind::Withdrawn => (Tone::Quiet, "given up"),
        MomentKind::Received => (Tone::Busy, "received"),
        MomentKind::CallPlaced => (Tone::Quiet, "call placed"),
        MomentKind::CallEnded => (Tone::Quiet, "call ended"),
        MomentKind::Act => (Tone::Busy, "act"),
    };
    html::chip(tone, word)
}

fn words(moment: &Moment) -> Markup {
    let event = moment.event_id.as_ref().map(|event| format!(" {}", html::id(event))).unwrap_or_default();
    let reason = moment.reason.as_ref().map(|reason| format!(" “{}”", html::escaped(reason))).unwrap_or_default();
    Markup(format!("{}{reason}{event}", html::with_links(&moment.words)))
}
