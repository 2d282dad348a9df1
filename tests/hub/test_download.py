"""Models from a hub: a server on this machine that answers as the Hub does, asked by the command line."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub as hf
import pytest
from typer.testing import CliRunner
from words import model, tokenizer

from lrp_fx.cli.main import app

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/words"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, paths that were asked for): a repository with code and a pickle beside the model."""
    home = tmp_path_factory.mktemp("repository")
    model().save_pretrained(home)
    tokenizer().save_pretrained(home)
    (home / "modeling_words.py").write_text("raise SystemExit('code of a repository ran')")
    (home / "pytorch_model.bin").write_bytes(b"a pickle")
    contents = {f"/{NAME}/resolve/{COMMIT}/{file.name}": file.read_bytes() for file in home.iterdir()}
    listed = [
        {
            "type": "file",
            "path": path.rpartition("/")[2],
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
        }
        for path, content in contents.items()
    ]
    for revision in ("main", "v1"):
        contents[f"/api/models/{NAME}/revision/{revision}"] = json.dumps({"id": NAME, "sha": COMMIT}).encode()
    contents[f"/api/models/{NAME}"] = contents[f"/api/models/{NAME}/revision/main"]
    contents[f"/api/models/{NAME}/tree/{COMMIT}"] = json.dumps(listed).encode()
    asked = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self.path.partition("?")[0]
            content = contents.get(path)
            asked.append(path)
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "RevisionNotFound" if NAME in path else "RepoNotFound")
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.fixture
def hub(served, tmp_path, monkeypatch):
    """Set what HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE set: ``hub(offline=True)`` is without a network."""
    address, asked = served

    def as_if(offline=False):
        monkeypatch.setattr(hf.constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(hf.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(hf.constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hf.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        asked.clear()
        return asked

    return as_if


def explained(*arguments):
    result = CliRunner().invoke(app, ["explain", *arguments, "--json"])
    return result.exit_code, " ".join(result.output.split()), result.stdout


def test_a_model_of_the_hub_is_explained_and_kept_without_code_and_pickles(hub):
    asked = hub()
    code, said, online = explained(NAME, "w1 w2 w3")
    assert code == 0, said
    assert [share["text"] for share in json.loads(online)["shares"]][1:4] == ["w1", "w2", "w3"]
    files = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not {"modeling_words.py", "pytorch_model.bin"} & files
    asked = hub(offline=True)
    assert explained(NAME, "w1 w2 w3") == (0, said, online) and not asked


def test_revisions_and_names_that_the_hub_does_not_have(hub):
    assert hub() is not None and explained(f"{NAME}@v1", "w1")[0] == 0
    for name, remedy in ((f"{NAME}@v2", "check the name and the network"), ("someone/else", "needs `hf auth login`")):
        code, said, _ = explained(name, "w1")
        assert code == 1 and f"no model '{name}'" in said and remedy in said
    hub(offline=True)
    code, said, _ = explained("someone/else", "w1")
    assert code == 1 and "HF_HUB_OFFLINE is set" in said
