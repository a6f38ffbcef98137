"""Debian packages of which only the program is wanted, not the server that they would start."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from postgres import apt_install

# Where packages put programs that an ordinary user's PATH may lack.
PROGRAM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/bin", "/usr/sbin", "/usr/local/sbin"))
UNITS = Path("/etc/systemd/system")
# Asked before a package's scripts start anything, by whatever starts servers on this system. 101: do not.
POLICY = Path("/usr/sbin/policy-rc.d")
REFUSE = "#!/bin/sh\nexit 101\n"


def find_program(name: str) -> Path | None:
    found = shutil.which(name, path=PROGRAM_PATH)
    return Path(found) if found else None


def installs() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_quietly(package: str) -> None:
    """Installs a package whose server, of the same name, would listen everywhere, now and at each boot: neither happens."""
    unit = UNITS / f"{package}.service"
    masked = not os.path.lexists(unit) and unit.parent.is_dir()
    refused = not os.path.lexists(POLICY)
    if masked:
        unit.symlink_to("/dev/null")
    if refused:
        POLICY.write_text(REFUSE)
        POLICY.chmod(0o755)
    try:
        apt_install(package)
    finally:
        if refused:
            POLICY.unlink()
        if masked:
            unit.unlink()
            if systemctl := shutil.which("systemctl"):
                subprocess.run([systemctl, "disable", package], stdin=subprocess.DEVNULL, capture_output=True)
