"""What the API was asked, what Synapse shows, and what the API reports: side by side, with every difference named."""

from __future__ import annotations

import contextlib
import textwrap
import uuid

from programs import SERVICE_USER
from scene import Scene, User

# A Matrix user id and an event id are 48 and 44 characters long, and stand on one line each.
WIDTHS = (28, 48, 46)


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
        self.events = [event for event in client.timeline(self.room_id) if event["type"] == "m.room.message"]

    def show(self) -> bool:
        _row(["What the API was asked"], [f"What Synapse shows {self.reader}"], ["What the API reports"])
        faults = self._show_room()
        # Longer than either list where the other is too short: a missing or surplus event must show.
        for number in range(max(len(self.events), len(self.scene.messages))):
            faults += self._show_message(number)
        _rule()
        return not faults

    def _show_room(self) -> list[str]:
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
        _row(asked, [self.room_id, f'"{self.room_name}"', *seen], said, faults=faults)
        return faults

    def _show_message(self, number: int) -> list[str]:
        asked: list[str] = []
        shown: list[str] = []
        reported: list[str] = []
        faults: list[str] = []
        event = self.events[number] if number < len(self.events) else None
        message = self.scene.messages[number] if number < len(self.scene.messages) else None
        if event:
            content = event["content"]
            by = str(content.get("com.nova.sender_id"))
            shown = [f"from {event['sender']}", f"com.nova.sender_id {by}", _quoted(content.get("body"))]
            shown.append(event["event_id"])
        if message:
            report = self.reports[number]
            matrix = report["matrix"]
            asked = [f"{message.author.name}: POST /messages", _quoted(message.text)]
            reported = [f"message {message.id}", str(matrix["delivery"]), _quoted(report["plaintext"])]
            reported.append(str(matrix["event_id"]))
        if event is None:
            faults.append("Synapse does not have it")
        elif message is None:
            faults.append("nobody asked for it")
        else:
            if event["sender"] != SERVICE_USER:
                faults.append("another sender")
            if not _same_user(by, message.author):
                faults.append("another author")
            if not message.text == content.get("body") == report["plaintext"]:
                faults.append("another text")
            if event["event_id"] != matrix["event_id"]:
                faults.append("another event id")
        _row(asked, shown, reported, faults=faults)
        return faults


def _same_user(text: str, user: User) -> bool:
    with contextlib.suppress(ValueError):
        return uuid.UUID(text) == user.id
    return False


def _quoted(text: object) -> str:
    return f'"{text}"' if isinstance(text, str) else str(text)


def _row(*columns: list[str], faults: list[str] | None = None) -> None:
    """One row of the table: each column's lines, wrapped. `faults` None: a heading."""
    _rule()
    wrapped = [
        [piece for line in lines for piece in textwrap.wrap(line, width, break_on_hyphens=False) or [""]]
        for lines, width in zip(columns, WIDTHS, strict=True)
    ]
    for number in range(max(map(len, wrapped))):
        cells = [lines[number] if number < len(lines) else "" for lines in wrapped]
        print("   " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip())
    if faults is not None:
        print(f"   => {'agree' if not faults else 'DIFFER: ' + ', '.join(faults)}")


def _rule() -> None:
    print("   " + "-+-".join("-" * width for width in WIDTHS))
