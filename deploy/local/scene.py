"""What the demo's users do, through the REST API and as Matrix clients, told line by line."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from matrix import MatrixClient, register
from processes import wait_until
from programs import mint_token
from synapse import SERVER_NAME
from web import Answer, Json, request
from whole import Stack

DELIVERY_SECONDS = 60.0


class Disagreement(Exception):
    """Something that should have happened did not."""


@dataclass
class User:
    name: str
    token: str
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    account: MatrixClient | None = None

    @property
    def matrix_id(self) -> str:
        return f"@nova-{self.id.hex}:{SERVER_NAME}"

    @property
    def matrix(self) -> MatrixClient:
        if self.account is None:
            raise Disagreement(f"{self.name} has no Matrix account")
        return self.account


@dataclass
class Message:
    """What the API was asked to say, or somebody said on Matrix."""

    author: User
    text: str
    id: str
    edited: bool = False
    deleted: bool = False
    on_matrix: bool = False


class Scene:
    """The users, and what has been asked so far."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.users: dict[str, User] = {}
        for name in ("Ada", "Grace", "Linus"):
            user = User(name, token="")
            user.token = mint_token(stack.secrets["JWT_SECRET"], str(user.id))
            self.users[name] = user
        self.conversation_id = ""
        self.title = ""
        self.members: list[User] = []
        self.messages: list[Message] = []

    def api(self, user: User, method: str, path: str, body: Json | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {user.token}"}
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        return request(method, f"{self.stack.api.url}{path}", body, headers)

    def give_matrix_account(self, name: str) -> None:
        user = self.users[name]
        synapse = self.stack.synapse
        localpart = f"nova-{user.id.hex}"
        password = register(synapse.url, synapse.registration_secret, localpart)
        user.account = MatrixClient(synapse.url, localpart, password, "DEMO")
        _tell(name, "logs in to Synapse", user.account.user_id)

    def open(self, name: str, others: list[str], title: str) -> None:
        members = [self.users[other] for other in others]
        body: Json = {"members": [str(member.id) for member in members], "name": title}
        answer = self.api(self.users[name], "POST", "/conversations", body)
        self.conversation_id = answer.body["id"]
        self.title = title
        self.members = [self.users[name], *members]
        _tell(name, f'POST /conversations "{title}" with {", ".join(others)}', _said(answer))

    def say(self, name: str, text: str) -> Message:
        author = self.users[name]
        answer = self.api(author, "POST", "/messages", {"conversation_id": self.conversation_id, "plaintext": text})
        message = Message(author, text, answer.body["id"])
        self.messages.append(message)
        _tell(name, f'POST /messages "{text}"', f"{_said(answer)}, delivery {answer.body['matrix']['delivery']}")
        return message

    def say_on_matrix(self, name: str, text: str) -> Message:
        """Says something with the user's own Matrix account, and waits until the API knows it."""
        author = self.users[name]
        room_id = self.report(self.messages[0])["matrix"]["room_id"]
        event_id = author.matrix.say(room_id, text)
        found: list[Json] = []

        def arrived() -> bool:
            page = self.api(author, "GET", f"/conversations/{self.conversation_id}/messages").body
            found[:] = [message for message in page["messages"] if message["matrix"]["event_id"] == event_id]
            return bool(found)

        if not wait_until(arrived, DELIVERY_SECONDS, pause=0.2):
            raise Disagreement(f'"{text}" did not come from Matrix within {DELIVERY_SECONDS:.0f} s')
        message = Message(author, text, found[0]["id"], on_matrix=True)
        self.messages.append(message)
        _tell(name, f'says on Matrix "{text}"', f"the API has it, id {message.id}")
        return message

    def edit(self, message: Message, text: str) -> None:
        answer = self.api(message.author, "PATCH", f"/messages/{message.id}", {"plaintext": text})
        message.text, message.edited = text, True
        _tell(message.author.name, f'PATCH /messages/… "{text}"', f"{answer.status}, revision {answer.body['revision']}")

    def delete(self, message: Message) -> None:
        answer = self.api(message.author, "DELETE", f"/messages/{message.id}")
        message.deleted = True
        _tell(message.author.name, f'DELETE /messages/…  ("{message.text}")', f"{answer.status}, {answer.body['deletion']}")

    def accept_invitation(self, name: str) -> None:
        """Joins the one room that the user is invited to, as any Matrix client would."""
        client = self.users[name].matrix
        rooms: list[str] = []

        def invited() -> bool:
            rooms[:] = client.invitations()
            return bool(rooms)

        if not wait_until(invited, DELIVERY_SECONDS, pause=0.2):
            raise Disagreement(f"{name} was not invited within {DELIVERY_SECONDS:.0f} s")
        client.join(rooms[0])
        _tell(name, "is invited on Matrix, and joins", rooms[0])

    def wait_for_delivery(self) -> None:
        for message in self.messages:
            if message.on_matrix:
                continue

            def delivered(message: Message = message) -> bool:
                return bool(self.report(message)["matrix"]["delivery"] == "delivered")

            if not wait_until(delivered, DELIVERY_SECONDS, pause=0.2):
                raise Disagreement(f'"{message.text}" was not delivered within {DELIVERY_SECONDS:.0f} s')

    def tell(self, user: User, what: str, outcome: str) -> None:
        """Prints what a user did, and what came of it."""
        _tell(user.name, what, outcome)

    def report(self, message: Message) -> Json:
        """The message as the API knows it, which is what stands in Postgres."""
        return self.api(message.author, "GET", f"/messages/{message.id}").body


def _said(answer: Answer) -> str:
    return f"{answer.status}, id {answer.body['id']}"


def _tell(who: str, what: str, outcome: str) -> None:
    print(f"   {who:<6} {what}\n          -> {outcome}", flush=True)
