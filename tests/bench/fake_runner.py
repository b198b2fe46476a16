"""A runner whose engine takes planted times: ``fake_runner.py BEHAVIOUR PREFILL_S TPOT_S [ORDER_FILE NAME]``.

``ok`` answers all; ``short`` generates one token too few; ``crash`` dies at the first batch of 4, ``hang`` never
answers it, and ``babble`` says no JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def answer(request: dict[str, object], behaviour: str, prefill_s: float, tpot_s: float) -> dict[str, object]:
    if request["do"] == "load":
        return {"import_s": 0.25, "load_s": 0.0, "more": "ignored"}
    if request["do"] == "info":
        return {"versions": {"fake": "1"}, "kernels": ["rms_norm=fake"], "pack": "p", "kv_cache_bytes": 1 << 30}
    length = int(request["output_length"])  # type: ignore[call-overload]
    tokens = int(request["batch"]) * length  # type: ignore[call-overload]
    if behaviour == "short" and length > 1:
        tokens -= 1
    return {"seconds": prefill_s + (length - 1) * tpot_s, "tokens": tokens, "prompt_checksum": request["seed"]}


def main() -> None:
    behaviour, prefill_s, tpot_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    print("the fake engine starts", file=sys.stderr)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "quit":
            print("{}", flush=True)
            return
        if request.get("batch") == 4:
            if behaviour == "crash":
                print("the fake engine is out of memory", file=sys.stderr)
                sys.exit(3)
            if behaviour == "hang":
                time.sleep(600)
            if behaviour == "babble":
                print("INFO: not JSON", flush=True)
                continue
        if len(sys.argv) > 4 and request["do"] == "generate":
            with Path(sys.argv[4]).open("a") as order:
                order.write(f"{sys.argv[5]} {request['batch']} {request['output_length']} {request['seed']}\n")
        print(json.dumps(answer(request, behaviour, prefill_s, tpot_s)), flush=True)


if __name__ == "__main__":
    main()
