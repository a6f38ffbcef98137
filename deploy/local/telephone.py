"""The demonstration's call: placed through the REST API, answered on Matrix, and what each side then knows of it."""

from __future__ import annotations

from processes import wait_until
from scene import DELIVERY_SECONDS, Disagreement, Scene
from web import Json

# Descriptions of sessions, as browsers make them, but for their content: nobody here has a camera.
OFFER = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=Ada\r\nt=0 0\r\n"
ANSWER = "v=0\r\no=- 2 1 IN IP4 127.0.0.1\r\ns=Grace\r\nt=0 0\r\n"


class Telephone:
    """A call from one member to another, who is on Matrix."""

    def __init__(self, scene: Scene, caller: str, called: str) -> None:
        self.scene = scene
        self.caller = scene.users[caller]
        self.called = scene.users[called]
        self.room_id: str = scene.report(scene.messages[0])["matrix"]["room_id"]
        self.call_id = ""

    def play(self) -> bool:
        """A call with its beginning and its end. True when both sides know the same of it."""
        offer: Json = {
            "conversation_id": self.scene.conversation_id,
            "invitee": str(self.called.id),
            "sdp_offer": OFFER,
            "party_id": "ADAS-PHONE",
        }
        answer = self.scene.api(self.caller, "POST", "/calls/initiate", offer)
        self.call_id = answer.body["id"]
        self.scene.tell(self.caller, f"POST /calls/initiate, for {self.called.name}", f"{answer.status}, id {self.call_id}")
        invite = self._signal("m.call.invite")
        self.scene.tell(self.called, "her phone rings on Matrix", f"m.call.invite, for {invite['lifetime'] // 1000} s more")
        content: Json = {
            "call_id": self.call_id,
            "party_id": "GRACES-DESK",
            "version": "1",
            "answer": {"type": "answer", "sdp": ANSWER},
        }
        self.called.matrix.send(self.room_id, "m.call.answer", content)
        call = self._until("active")
        by = call["answered_by"]["party_id"]
        self.scene.tell(self.called, "answers on Matrix", f"the API has the call {call['status']}, answered by {by}")
        self._signal("m.call.select_answer")
        ended = self.scene.api(self.caller, "POST", f"/calls/{self.call_id}/hangup", {"reason": "user_hangup"})
        self._signal("m.call.hangup")
        self.scene.tell(self.caller, "POST /calls/…/hangup", f"{ended.status}, {ended.body['status']}")
        return self._show(invite)

    def _show(self, invite: Json) -> bool:
        call = self.scene.api(self.caller, "GET", f"/calls/{self.call_id}").body
        events = [event for event in self._signals() if event["content"]["call_id"] == self.call_id]
        names = [event["type"] for event in events]
        faults = []
        if names != ["m.call.invite", "m.call.answer", "m.call.select_answer", "m.call.hangup"]:
            faults.append("the room shows another call")
        if invite["offer"]["sdp"] != OFFER or invite["invitee"] != self.called.matrix_id:
            faults.append("the invite is another one")
        if events[0]["event_id"] != call["matrix"]["event_id"]:
            faults.append("the API knows another event")
        if any(event["content"]["version"] != "1" for event in events):
            faults.append("an event is of another version")
        if (call["status"], call["reason"]) != ("ended", "user_hangup"):
            faults.append("the API does not say that it was hung up")
        print(f"   Synapse shows {self.called.name}   {', '.join(name.removeprefix('m.call.') for name in names)}")
        print(f"   The API reports       {call['status']}, {call['reason']}; invite {call['matrix']['event_id']}")
        print(f"   => {'agree' if not faults else 'DIFFER: ' + ', '.join(faults)}", flush=True)
        return not faults

    def _signals(self) -> list[Json]:
        timeline = self.called.matrix.timeline(self.room_id)
        return [event for event in timeline if event["type"].startswith("m.call.")]

    def _signal(self, event_type: str) -> Json:
        """Waits until the room has an event of this type for the call."""
        found: list[Json] = []

        def there() -> bool:
            found[:] = [
                event["content"]
                for event in self._signals()
                if event["type"] == event_type and event["content"]["call_id"] == self.call_id
            ]
            return bool(found)

        if not wait_until(there, DELIVERY_SECONDS, pause=0.2):
            raise Disagreement(f"{event_type} did not reach Matrix within {DELIVERY_SECONDS:.0f} s")
        return found[0]

    def _until(self, status: str) -> Json:
        calls: list[Json] = []

        def so() -> bool:
            calls[:] = [self.scene.api(self.caller, "GET", f"/calls/{self.call_id}").body]
            return bool(calls[0]["status"] == status)

        if not wait_until(so, DELIVERY_SECONDS, pause=0.2):
            raise Disagreement(f"the call was not {status} within {DELIVERY_SECONDS:.0f} s")
        return calls[0]
