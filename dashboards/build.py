#!/usr/bin/env python3
"""Writes the dashboards, `<name>.json`, from `source/`. With `--check`, says which are not as it would write them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True

from source import api, calls, delivery, postgres, sync  # noqa: E402

HERE = Path(__file__).resolve().parent
ALL = [module.DASHBOARD for module in (delivery, calls, sync, api, postgres)]


def files() -> dict[Path, str]:
    return {
        HERE / f"{board.name}.json": json.dumps(board.to_json(ALL), indent=2, ensure_ascii=False) + "\n" for board in ALL
    }


def main() -> int:
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f'{path.name} is not what dashboards/source makes: "make dashboards" writes it', file=sys.stderr)
        return 1 if stale else 0
    for path, text in files().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
