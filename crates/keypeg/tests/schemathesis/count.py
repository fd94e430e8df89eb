"""Prints the report of a run as a cargo test result, in which each operation is one test."""

import json
import sys

path, code = sys.argv[1], int(sys.argv[2])
try:
    with open(path) as file:
        report = json.load(file)
except (OSError, ValueError) as error:
    print(f"schemathesis: no report: {error}")
    print("test result: FAILED. 0 passed; 1 failed; 0 ignored; schemathesis")
    sys.exit(1)

cases, operations = report["test_cases"], report["operations"]
failing = {str(name) for failure in report["failures"] for name in failure["operations"]}
failed = max(len(failing) + operations["errored"], 1 if code else 0)
skipped = operations["selected"] - operations["tested"]
print(
    f"schemathesis: {cases['generated']} cases over {operations['tested']} operations, "
    f"{cases['with_failures']} of them failures, seed {report['seed']}"
)
word = "FAILED" if failed else "ok"
passed = operations["tested"] - min(failed, operations["tested"])
print(f"test result: {word}. {passed} passed; {failed} failed; {skipped} ignored; schemathesis")
