"""The pinned filter as a program: whole, the same each time, and refused when its library is missing."""

import hashlib
import subprocess
import sys
from pathlib import Path

from orchestrator.backends.local.callfilter import compiled, installed
from orchestrator.backends.seccomp import profile
from tests.needs import needs

pytestmark = needs("libseccomp")
WITHOUT_LIBRARY = (
    "import sys; sys.modules['pyseccomp'] = None\n"
    "from orchestrator.backends.local.callfilter import library\n"
    "from orchestrator.errors import Misconfigured\n"
    "try: library()\n"
    "except Misconfigured as error: print(error)"
)


def test_it_is_installed_once_by_content(tmp_path: Path) -> None:
    made = installed(tmp_path)
    assert made.name == hashlib.sha256(made.read_bytes()).hexdigest() + ".bpf"
    assert installed(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    assert len(made.read_bytes()) % 8 == 0


def test_another_filter_is_another_program() -> None:
    weaker = profile().replace('"access",', "", 1)
    assert weaker != profile()
    assert compiled(weaker) != compiled(profile()) == compiled(profile())


def test_without_its_library_no_box_is_made() -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT_LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "pip install 'tiltyard[local]'" in said
