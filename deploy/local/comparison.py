"""What the API was asked, what Synapse shows, and what the API reports: side by side, with every difference named."""

from __future__ import annotations

import contextlib
import textwrap
import uuid
from dataclasses import dataclass

from programs import SERVICE_USER
from scene import Message, Scene, User
from web import Json

# A Matrix user id and an event id are 48 and 44 characters long, and stand on one line each.
WIDTHS = (28, 48, 46)


@dataclass
class Row:
    """What was asked, what is shown, what is reported, and how they differ."""

    asked: list[str]
    shown: list[str]
    reported: list[str]
    faults: list[str]


class Comparison:
    """What was asked, what Synapse shows one member, and what the API reports."""

    def __init__(self, scene: Scene, reader: str) -> None:
        self.scene = scene
        self.reader = reader
        self.reports = [scene.report(message) for message in scene.messages]
        self.room_id: str = self.reports[0]["matrix"]["room_id"]
        client = scene.users[reader].matrix
        self.room_name: str | None = client.state(self.room_id, "m.room.name").get("name")
        self.memberships = client.members(self.room_id)
        said = [event for event in client.timeline(self.room_id) if event["type"] == "m.room.message"]
        self.events = [event for event in said if not _replaces(event)]
        # The newest edit of each event; the timeline is in order.
        self.edits = {_replaces(event): event for event in said if _replaces(event)}

    def rows(self) -> list[Row]:
        # Longer than either list where the other is too short: a missing or surplus event must show.
        numbers = range(max(len(self.events), len(self.scene.messages)))
        return [self._room(), *(self._message(number) for number in numbers)]

    def agrees(self) -> bool:
        return not any(row.faults for row in self.rows())

    def show(self) -> bool:
        rows = self.rows()
        _print([["What the API was asked"], [f"What Synapse shows {self.reader}"], ["What the API reports"]])
        for row in rows:
            _print([row.asked, row.shown, row.reported])
            print(f"   => {'agree' if not row.faults else 'DIFFER: ' + ', '.join(row.faults)}")
        _rule()
        return not any(row.faults for row in rows)

    def _room(self) -> Row:
        scene = self.scene
        known = {SERVICE_USER: "the service"}
        for user in scene.users.values():
            known[user.matrix_id] = user.name if user.account else f"{user.name}, who has no Matrix account"
        seen = []
        for who, membership in sorted(self.memberships.items(), key=lambda member: known.get(member[0], "")):
            seen += [f"{membership}: {known.get(who, 'a stranger')}", who]
        names = [user.name for user in scene.members]
        asked = [f"{names[0]}: POST /conversations", f'"{scene.title}"', *names]
        said = sorted({str(report["matrix"]["room_id"]) for report in self.reports})

        faults = []
        if self.room_name != scene.title:
            faults.append("the room has another name")
        expected = [SERVICE_USER, *(user.matrix_id for user in scene.members if user.account)]
        if any(self.memberships.get(who) != "join" for who in expected):
            faults.append("somebody is not in the room")
        if set(self.memberships) - set(known):
            faults.append("there is a stranger in the room")
        if said != [self.room_id]:
            faults.append("the API reports several rooms")
        return Row(asked, [self.room_id, f'"{self.room_name}"', *seen], said, faults)

    def _message(self, number: int) -> Row:
        asked: list[str] = []
        shown: list[str] = []
        reported: list[str] = []
        faults: list[str] = []
        event = self.events[number] if number < len(self.events) else None
        message = self.scene.messages[number] if number < len(self.scene.messages) else None
        edit = self.edits.get(event["event_id"]) if event else None
        if event:
            content = event["content"]
            by = content.get("com.nova.sender_id")
            shown = [f"from {event['sender']}"]
            shown += [f"com.nova.sender_id {by}"] if by else []
            shown.append(_quoted(content.get("body")) if content else "redacted: no content")
            shown.append(event["event_id"])
        if edit:
            shown += ["replaced by", _quoted(edit["content"]["m.new_content"].get("body")), edit["event_id"]]
        if message:
            report = self.reports[number]
            matrix = report["matrix"]
            did = "says on Matrix" if message.on_matrix else "POST /messages"
            asked = [f"{message.author.name}: {did}", _quoted(message.text)]
            asked += ["then PATCH"] * message.edited + ["then DELETE"] * message.deleted
            said = _quoted(report["plaintext"]) if report["plaintext"] is not None else "deleted"
            came = f"by {report['author_id']}" if message.on_matrix else str(matrix["delivery"])
            reported = [f"message {message.id}", came, said, str(matrix["event_id"])]
        if event is None:
            faults.append("Synapse does not have it")
        elif message is None:
            faults.append("nobody asked for it")
        else:
            if event["sender"] != (message.author.matrix_id if message.on_matrix else SERVICE_USER):
                faults.append("another sender")
            if event["event_id"] != matrix["event_id"]:
                faults.append("another event id")
            by = report["author_id"] if message.on_matrix else content.get("com.nova.sender_id")
            faults += self._faults_of_content(message, by, content, edit, report["plaintext"])
        return Row(asked, shown, reported, faults)

    def _faults_of_content(
        self, message: Message, author: object, content: Json, edit: Json | None, reported: str | None
    ) -> list[str]:
        if message.deleted:
            return ["the text is still there"] if content or edit or reported is not None else []
        faults = []
        if not _same_user(str(author), message.author):
            faults.append("another author")
        newest = edit["content"]["m.new_content"] if edit else content
        if not message.text == newest.get("body") == reported:
            faults.append("another text")
        if message.edited != (edit is not None):
            faults.append("an edit is missing or nobody's")
        return faults


def _replaces(event: Json) -> str:
    """The event that this one replaces; empty when it replaces none."""
    relation = event["content"].get("m.relates_to", {})
    return str(relation["event_id"]) if relation.get("rel_type") == "m.replace" else ""


def _same_user(text: str, user: User) -> bool:
    with contextlib.suppress(ValueError):
        return uuid.UUID(text) == user.id
    return False


def _quoted(text: object) -> str:
    return f'"{text}"' if isinstance(text, str) else str(text)


def _print(columns: list[list[str]]) -> None:
    """One row of the table: each column's lines, wrapped."""
    _rule()
    wrapped = [
        [piece for line in lines for piece in textwrap.wrap(line, width, break_on_hyphens=False) or [""]]
        for lines, width in zip(columns, WIDTHS, strict=True)
    ]
    for number in range(max(map(len, wrapped))):
        cells = [lines[number] if number < len(lines) else "" for lines in wrapped]
        print("   " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip())


def _rule() -> None:
    print("   " + "-+-".join("-" * width for width in WIDTHS))
