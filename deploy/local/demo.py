"""The demonstration: a conversation and a call through the REST API, read back from Synapse as a Matrix client reads it.

`play` is the script. What is printed comes from the servers' answers.
"""

from __future__ import annotations

import sys

from comparison import Comparison
from processes import StartFailed, ignore_signals, wait_until
from runs import temporary
from scene import DELIVERY_SECONDS, Disagreement, Scene
from telephone import Telephone
from web import Refused
from whole import Stack, say


def play(scene: Scene) -> None:
    """The script."""
    scene.open("Ada", ["Grace", "Linus"], title="Analytical Engine")
    scene.say("Ada", "The engine weaves algebraic patterns. Who wants to see it run?")
    scene.accept_invitation("Grace")
    scene.accept_invitation("Linus")
    scene.say("Grace", "I do. I will bring my compiler.")
    lantern = scene.say("Ada", "Bring a lantern too: it is dark in their \N{CANDLE}")
    secret = scene.say("Ada", "The key is under the flower pot.")
    scene.wait_for_delivery()
    scene.say_on_matrix("Linus", "I read this on Matrix, and answer from there.")
    scene.edit(lantern, "Bring a lantern too: it is dark in there \N{CANDLE}")
    scene.delete(secret)


def run() -> int:
    print("A conversation and a call through the REST API, and what Matrix then knows of them.\n")
    print("1. A stack of its own", flush=True)
    with temporary("matrix-outbox-demo-") as directory:
        stack = Stack(directory, tied=True)
        try:
            stack.start()
            agreed = _perform(stack)
        except (Disagreement, Refused, OSError, LookupError, TypeError) as error:
            sys.stdout.flush()
            for service in (stack.api, stack.worker):
                print(StartFailed(service.title, "the end of its log", service.log_tail()).report(), file=sys.stderr)
            print(f"\nThe demo failed: {_explained(error)}", file=sys.stderr)
            return 1
        finally:
            ignore_signals()
            say("")
            stack.stop(at_once=True)
    print("\nAll agree." if agreed else "\nThey do NOT agree.")
    return 0 if agreed else 1


def _perform(stack: Stack) -> bool:
    scene = Scene(stack)
    print("\n2. The conversation")
    for name in ("Grace", "Linus"):
        scene.give_matrix_account(name)
    play(scene)
    scene.wait_for_delivery()
    print("\n3. Side by side")
    # Edits and redactions follow their messages; what is shown is what stands when all has arrived.
    wait_until(lambda: Comparison(scene, reader="Grace").agrees(), DELIVERY_SECONDS, pause=0.5)
    agree = Comparison(scene, reader="Grace").show()
    print("\n4. A call")
    return Telephone(scene, caller="Ada", called="Grace").play() and agree


def _explained(error: Exception) -> str:
    """An answer that lacks what it should hold shows as a bare key; say what it is."""
    if isinstance(error, (LookupError, TypeError)):
        return f"an answer was not of the expected shape: {error!r}"
    return str(error)
