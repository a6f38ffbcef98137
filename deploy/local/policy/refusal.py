"""A module of Synapse that refuses, as malformed, what holds a certain word: so that something can be refused for good."""

from __future__ import annotations

from typing import Any

from synapse.api.errors import Codes, SynapseError
from synapse.module_api import EventBase, ModuleApi


class Refusal:
    def __init__(self, config: dict[str, Any], api: ModuleApi) -> None:
        self.word = str(config["word"])
        api.register_third_party_rules_callbacks(check_event_allowed=self.check)

    async def check(self, event: EventBase, _state: object) -> tuple[bool, None]:
        if self.word in str(event.content.get("body", "")):
            raise SynapseError(400, "this homeserver does not take that word", Codes.BAD_JSON)
        return True, None
