"""Files are whole or not there: what was there before stays, and a full disk is an error of the call that wrote."""

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import lrp_fx
from lrp_fx.files import replacing, write_text, writing
from lrp_fx.viz import Panel, Text, Word, page, write_page


def test_a_file_takes_its_place_at_the_end(tmp_path):
    place = tmp_path / "page.html"
    place.write_text("before")
    place.chmod(0o640)
    with replacing(place) as beside:
        assert beside.parent == tmp_path and beside.suffix == ".html"
        beside.write_text("after")
        assert place.read_text() == "before"
    assert place.read_text() == "after" and list(tmp_path.iterdir()) == [place]
    assert stat.S_IMODE(place.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_that_the_process_gives(tmp_path):
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "open", "")
        with writing(tmp_path / "own", mode=0o600) as file:
            file.write(b"")
    finally:
        os.umask(mask)
    assert [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("open", "own")] == [0o640, 0o600]


def test_an_error_leaves_what_was_there(tmp_path):
    place = tmp_path / "x.pt2"
    place.write_text("before")
    with pytest.raises(KeyError), writing(place) as file:
        file.write(b"half")
        raise KeyError
    assert place.read_text() == "before" and list(tmp_path.iterdir()) == [place]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")
    write_text(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "real").read_text() == "after"


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "")
    with pytest.raises(FileNotFoundError, match=r"missing/x' cannot be written: No such file or directory$"):
        write_text(tmp_path / "missing" / "x", "")  # the file that was asked for is named, not the temporary one


def test_a_full_device_is_an_error():
    with pytest.raises(OSError, match="No space left"):
        write_text("/dev/full", "page")
    with pytest.raises(OSError, match="No space left"), writing("/dev/full") as file:
        torch.save(torch.zeros(10_000), file)  # by itself it ends the process, or hides the reason


def limited(folder, code):
    """Run code in a process whose files may have 20 kB: one more byte is an error, as on a full disk."""
    header = """
        import pathlib, resource, signal, sys, torch, lrp_fx
        torch.set_num_threads(1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        folder = pathlib.Path(sys.argv[1])
        def full(write):
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
                write()
            except OSError as error:
                assert "File too large" in str(error), error
            else:
                raise AssertionError("written")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    """
    source = textwrap.dedent(header) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", source, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_full_disk_leaves_the_saved_graph_that_was_there(tmp_path):
    """Each writer in a process of its own limit: a saved graph, a page, a rule set, a table, an entry of the cache."""
    limited(
        tmp_path,
        """
        import os
        from lrp_fx.viz import write_page
        xmodel = lrp_fx.convert(torch.nn.Sequential(torch.nn.Linear(300, 300)).eval(), torch.randn(2, 300))
        place = folder / "x.pt2"
        place.write_text("before")
        full(lambda: xmodel.save(place, torch.randn(2, 300), target=1))
        assert place.read_text() == "before"
        full(lambda: write_page(folder / "x.html", "x" * 30_000))
        rules = lrp_fx.RuleSet.load({"base": "attnlrp", "overrides": {f"layer{i}": {"linear": "epsilon"} for i in range(2000)}})
        full(lambda: rules.save(folder / "rules.toml"))
        assert sorted(os.listdir(folder)) == ["x.pt2"], os.listdir(folder)
        """,
    )


@pytest.mark.slow
def test_a_full_disk_is_no_reason_to_fail_for_a_cache(tmp_path):
    limited(
        tmp_path,
        """
        import os, resource, warnings
        os.environ["LRP_FX_CACHE"] = str(folder / "cache")
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.constant, self.linear = torch.ones(10_000), torch.nn.Linear(4, 4)
            def forward(self, x):
                return self.linear(x) * self.constant.sum()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        lrp_fx.convert(torch.nn.Sequential(Net()).eval(), torch.randn(2, 4)).explain(torch.randn(2, 4))
        assert not list((folder / "cache").glob("*")) and not list((folder / "cache").glob(".*"))
        """,
    )


def test_pages_and_rules_replace_what_was_there(tmp_path):
    html = page([Panel(texts=[Text([Word("good", 1.0)])], ledger={"input": 1.0})], "t")
    for _ in range(2):
        assert write_page(tmp_path / "new" / "x.html", html).read_text() == html
        path = lrp_fx.RuleSet.load("attnlrp").save(tmp_path / "rules.toml")
    assert lrp_fx.RuleSet.load(path).rules == lrp_fx.RuleSet.load("attnlrp").rules
    assert sorted(p.name for p in Path(tmp_path).rglob("*")) == ["new", "rules.toml", "x.html"]
