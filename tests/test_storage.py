"""Files are whole or not written, and clear words where they cannot be read."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from petseg.errors import PetsegError
from petseg.storage import read_json, remove_unfinished, write_atomically, write_json
from tests.conftest import names, refused


def test_write_atomically_moves_the_whole_file_there(tmp_path):
    path = tmp_path / "new" / "file.txt"

    def write(unfinished):
        unfinished.write_text("whole")
        assert unfinished.parent == path.parent, "on the same disk, or the move is a copy"
        assert not path.exists()

    write_atomically(path, write)
    assert (path.read_text(), names(path.parent)) == ("whole", ["file.txt"])


@pytest.mark.parametrize(
    ("error", "raised", "match"),
    [
        (OSError(errno.ENOSPC, "Full"), PetsegError, r"file\.txt: cannot be written \(Full\); free some space$"),
        (OSError(errno.EACCES, "Locked"), PetsegError, r"cannot be written \(Locked\); choose another folder$"),
        (OSError(errno.EROFS, "Locked"), PetsegError, r"cannot be written \(Locked\); choose another folder$"),
        (OSError(errno.ENAMETOOLONG, "Long"), PetsegError, r"\(Long\); give the photo or the folder a shorter name$"),
        (OSError("odd"), PetsegError, r"cannot be written \(odd\); free some space or choose another folder$"),
        (RuntimeError("bug"), RuntimeError, "^bug$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, error, raised, match):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(unfinished):
        unfinished.write_text("ne")
        raise error

    with pytest.raises(raised, match=match):
        write_atomically(path, write)
    assert (path.read_text(), names(tmp_path)) == ("old", ["file.txt"])
    for place in (path, path / "below"):  # where no folder can be made
        with pytest.raises(PetsegError, match=r"^[^\n]*a\.txt: cannot be written \(.*\); free some space or choose"):
            write_atomically(place / "a.txt", lambda unfinished: unfinished.write_text("x"))


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from petseg.storage import write_atomically\n"
        "def write(unfinished):\n"
        "    unfinished.write_text('ne')\n"
        "    os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code, path], check=False, capture_output=True)
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2  # the half stands beside it, hidden, under a name that nobody reads
    assert names(tmp_path)[0].startswith(".file.txt.tmp")


def test_what_killed_writes_left_is_swept_and_nothing_else(tmp_path):
    for name in (
        f".mask.png.tmp{2**40}",
        ".tmp9RhjQI",
        ".tmp-of-somebody",
        "metrics.jsonl",
    ):  # the second is safetensors'
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, ["mask.png"])
    assert names(tmp_path) == [".tmp-of-somebody", ".tmp9RhjQI", "metrics.jsonl"], "a folder of photos is not ours"
    remove_unfinished(tmp_path)
    assert names(tmp_path) == [".tmp-of-somebody", "metrics.jsonl"]
    long = tmp_path / ("ä" * 120 + ".mask.png")
    with pytest.raises(ZeroDivisionError):
        write_atomically(long, lambda unfinished: [Path(f"{unfinished}0000000").touch(), 1 / 0])
    assert len(names(tmp_path)) == 3
    remove_unfinished(tmp_path, [long.name])
    assert names(tmp_path) == [".tmp-of-somebody", "metrics.jsonl"]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps files that are open")
def test_what_a_live_process_writes_is_left_to_it_unless_it_is_old(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mine, theirs = (tmp_path / f".mask.png.tmp{process}" for process in (os.getpid(), other.pid))
        for path in (mine, theirs):
            path.touch()
        remove_unfinished(tmp_path, ["mask.png"])
        assert names(tmp_path) == [theirs.name], "the number of this process is one that was killed before"
        os.utime(theirs, (0, time.time() - 7200))
        remove_unfinished(tmp_path, ["mask.png"])
        assert names(tmp_path) == []
        theirs.touch()
        other.stdin.close()
        if sys.platform == "linux":
            os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and keeps its number
            remove_unfinished(tmp_path, ["mask.png"])
            assert names(tmp_path) == []
            theirs.touch()
    remove_unfinished(tmp_path, ["mask.png"])
    assert names(tmp_path) == []


def test_json_is_read_as_it_was_written_and_what_is_missing_broken_or_no_object_is_one_line(tmp_path):
    path, content = tmp_path / "a.json", {"mIoU": 0.7284, "classes": ["pet", "Mähne"], "none": None, "nested": {"a": 1}}
    write_json(path, content)
    assert read_json(path) == content
    assert path.read_bytes().endswith(b"}\n")
    assert path.read_bytes().count(b"\n") > 5  # for people
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"rows": [{"loss": value}]})
    assert (read_json(path), names(tmp_path)) == (content, ["a.json"])
    broken = [(content, r"not readable as JSON \(.*\); restore it") for content in (b"", b'{"a": 1', b'{"a": "\xff"}')]
    others = [(b"[1]", "list"), (b"3", "int"), (b"null", "NoneType"), (b'"a"', "str")]
    refused(r"a\.json: no such file; is this the folder of a finished run\?", read_json, tmp_path / "gone" / "a.json")
    refused("not readable as JSON", read_json, tmp_path)
    for content, reason in (*broken, *((content, f"holds a {kind}; wanted a JSON object") for content, kind in others)):
        (tmp_path / "a.json").write_bytes(content)
        refused(rf"a\.json: {reason}", read_json, tmp_path / "a.json")
