"""`make pictures`: the pictures of README and docs, from runs made for them, in about ten minutes.

Everything is real: a sweep, the default run, a run killed with `kill -9` and resumed, MLflow's page in Chromium.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from bestrun.storage.journal import read_journal
from bestrun.views import curves

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or sys.exit("no Chromium here; CHROMIUM=PATH names one")
)
OFTEN = ["recipe=quick", "training.evaluate_every_steps=40"]


def bestrun(home: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bestrun", *words]
    environment = os.environ | {"BESTRUN_MLRUNS": str(home)}
    print("bestrun", *words, flush=True)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def done(home: Path, *words: str) -> str:
    process = bestrun(home, *words)
    out = process.communicate()[0]
    if process.returncode:
        sys.exit(out)
    return out


def events(home: Path, name: str) -> list[dict]:
    return read_journal(home / "runs" / name / "journal.jsonl")[0]


def killed_and_resumed(home: Path) -> None:
    """One run to its end; the same killed twice and resumed; their curves in one picture."""
    done(home, "train", *OFTEN, "name=uninterrupted")
    process = bestrun(home, "train", *OFTEN, "name=killed")
    for step in (480, 1120):
        while not any(event.get("step", 0) >= step for event in events(home, "killed")):
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = bestrun(home, "resume", "killed")
    process.communicate()
    history = {
        name: [e for e in events(home, name) if e["event"] == "evaluation"] for name in ("uninterrupted", "killed")
    }
    resumed = [event["from_step"] for event in events(home, "killed") if event["event"] == "resumed"]
    figure = curves.coinciding_figure(history["uninterrupted"], history["killed"], resumed)
    figure.savefig(PICTURES / "resume.png", dpi=110)


def tested(home: Path) -> None:
    """The default run, which docs/tutorial.md goes through; its test."""
    done(home, "train", "name=tutorial")
    with tempfile.TemporaryDirectory() as out:
        print(done(home, "restore", "tutorial", "--out", out))
        for name in ("confusion_matrix.png", "example_errors.png"):
            shutil.copyfile(Path(out) / "pictures" / name, PICTURES / name)


def page(home: Path, link: str) -> None:
    """The run table of a sweep in MLflow's page."""
    ui = bestrun(home, "ui", "--port", "5919")
    try:
        address = ""
        for line in ui.stdout or ():
            if found := re.search(r"http://127.0.0.1:\d+/", line):
                address = found[0]
            if "Uvicorn running" in line:
                break
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            view = browser.new_page(viewport={"width": 1280, "height": 520})
            view.goto(address + link)
            view.get_by_text("matching runs").wait_for()
            for close in view.get_by_role("button", name="Close").all():  # the assistant, the note on shared views
                close.click()
            view.wait_for_timeout(3000)
            view.screenshot(path=str(PICTURES / "mlflow.png"))
            browser.close()
    finally:
        ui.send_signal(signal.SIGINT)
        ui.communicate()


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "mlruns"
        sweep = done(home, "train", "-m", "recipe=quick", "optimizer.learning_rate=1e-3,3e-3,1e-2", "sweep.name=rates")
        print(sweep)
        killed_and_resumed(home)
        tested(home)
        page(home, re.search(r"#/\S+", sweep)[0])  # type: ignore[index]
        print(json.dumps({path.name: path.stat().st_size for path in sorted(PICTURES.glob("*.png"))}, indent=2))


if __name__ == "__main__":
    main()
