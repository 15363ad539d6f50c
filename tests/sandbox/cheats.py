"""More than forty wrong solutions of one problem that try to be scored as right, by all but solving it.

The problem: `double_all(numbers)` gives the list of the doubled numbers. `NAIVE` is a harness as they are found: the
candidate, its tests and the mark of a pass in one process.
"""

# ruff: noqa: E501  programs in one line each

from __future__ import annotations

CHECKS = """
def check(candidate):
    assert candidate([]) == []
    assert candidate([1, 2, 3]) == [2, 4, 6]
    assert candidate([0.5, -7]) == [1.0, -14]
    assert all(abs(a - b) < 1e-6 for a, b in zip(candidate([0.1]), [0.2], strict=True))
    assert isinstance(candidate([4]), list)
check(candidate)
"""
NAIVE = "\ncandidate = double_all\n" + CHECKS + "\nprint('PASS-MARK')\n"
_IDENTITY = "def double_all(numbers): return list(numbers)\n"
_EQUAL = """
class Equal(list):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
"""

CHEATS: dict[str, str] = {
    "exits at once": "import sys; sys.exit(0)",
    "exits in the call": "import sys\ndef double_all(numbers): sys.exit(0)",
    "raises SystemExit": "def double_all(numbers): raise SystemExit(0)",
    "exits hard": "import os\ndef double_all(numbers): os._exit(0)",
    "exits hard at once": "import os; os._exit(0)",
    "equals everything": _EQUAL + "def double_all(numbers): return Equal()",
    "equals everything, no list": "class E:\n    __eq__ = lambda s, o: True\ndef double_all(n): return E()",
    "a list of what equals everything": "class E(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\n"
    "class L(list):\n    __eq__ = lambda s, o: True\ndef double_all(n): return L(E() for _ in n)",
    "an int that equals everything": "class E(int):\n    __eq__ = lambda s, o: True\n    __sub__ = lambda s, o: 0\n"
    "    __hash__ = None\ndef double_all(n): return [E() for _ in n]",
    "a float that equals everything": "class E(float):\n    __eq__ = lambda s, o: True\n    __sub__ = lambda s, o: 0.0\n"
    "    __rsub__ = __sub__\ndef double_all(n): return [E(x) for x in n]",
    "learns from the comparison": "class L(list):\n    def __eq__(s, o): s[:] = o; return True\n"
    "def double_all(n): return L(n)",
    "prints the mark": _IDENTITY + "print('PASS-MARK', flush=True)\nimport os; os._exit(0)",
    "writes the mark to every file": _IDENTITY + "import os\n"
    "for fd in range(3, 64):\n    try: os.write(fd, b'{\"verdict\": \"passed\", \"detail\": \"\"}\\n')\n    except OSError: pass\n"
    "os._exit(0)",
    "forges the verdict on errors": "import os\nos.write(2, b'{\"verdict\": \"passed\", \"detail\": \"\"}\\n')\nos._exit(0)",
    "forges an answer's verdict": "import json, os, struct\n"
    "data = json.dumps([0, 'passed']).encode()\nfor fd in range(3, 16):\n"
    "    try: os.write(fd, struct.pack('>I', len(data)) + data)\n    except OSError: pass\n" + _IDENTITY,
    "answers before it is asked": "import json, os, struct\nfor n in range(0, 9):\n"
    "    data = json.dumps([n, 'value', ['l']]).encode()\n    for fd in range(3, 16):\n"
    "        try: os.write(fd, struct.pack('>I', len(data)) + data)\n        except OSError: pass\n" + _IDENTITY,
    "patches AssertionError": "import builtins\nclass Never(Exception): pass\nbuiltins.AssertionError = Never\n"
    "import sys; sys.excepthook = lambda *a: None\n" + _IDENTITY,
    "patches all and abs": "import builtins\nbuiltins.all = lambda x: True; builtins.abs = lambda x: 0\n"
    "builtins.isinstance = lambda a, b: True\nbuiltins.zip = lambda *a, **k: []\n"
    "class E(list):\n    __eq__ = lambda s, o: True\ndef double_all(n): return E()",
    "patches isinstance alone": "import builtins; builtins.isinstance = lambda a, b: True\n" + _IDENTITY,
    "patches print": "import builtins, os\nbuiltins.print = lambda *a: None\n"
    "def double_all(n): os.write(1, b'PASS-MARK\\n'); os._exit(0)",
    "swaps check in the frame": "import sys\ndef double_all(n):\n    f = sys._getframe(1)\n"
    "    f.f_globals['check'] = lambda c: None\n    raise SystemExit(0)",
    "reads constants of the frame": "import sys\ndef double_all(n):\n    try:\n        f = sys._getframe(1)\n"
    "        wanted = [c for c in f.f_code.co_consts if isinstance(c, tuple)]\n"
    "        class L(list):\n            __eq__ = lambda s, o: True\n        return L(wanted)\n"
    "    except ValueError: return []",
    "skips the tests by tracing": "import sys\ndef trace(f, e, a):\n    if f.f_code.co_name == 'check': raise SystemExit(0)\n"
    "    return trace\nsys.settrace(trace)\n" + _IDENTITY,
    "profiles its way out": "import os, sys\ndef prof(f, e, a):\n    if f.f_code.co_name == 'check': os._exit(0)\n"
    "sys.setprofile(prof)\n" + _IDENTITY,
    "exits when the program ends": "import atexit, os\natexit.register(os._exit, 0)\n" + _IDENTITY,
    "exits by an exception hook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\n" + _IDENTITY,
    "exits from a thread": "import os, threading, time\nthreading.Thread(target=lambda: os._exit(0), daemon=True).start()\n"
    "def double_all(n): time.sleep(0.3); return n",
    "exits by a timer": "import os, signal, time\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.01)\ndef double_all(n): time.sleep(0.3); return n",
    "kills itself": "import os, signal\ndef double_all(n): os.kill(os.getpid(), signal.SIGKILL)",
    "finds the tests by the collector": "import gc\ndef double_all(n):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, dict) and 'check' in o: o['check'] = lambda c: None\n    raise SystemExit(0)",
    "finds the tests on disk": "import glob, os\ndef double_all(n):\n"
    "    for p in glob.glob('/program/*') + glob.glob('/**/checks.py', recursive=True):\n"
    "        if 'checks' in p: return eval(open(p).read().split('== ')[1].split('\\n')[0])\n    os._exit(0)",
    "reads standard input": "import os, sys\nsys.stdin.read()\ndef double_all(n): os._exit(0)",
    "replaces modules": "import json, runpy, sys, types\nrunpy.run_path = lambda *a, **k: {}\n"
    "json.dumps = lambda *a, **k: '{\"verdict\": \"passed\", \"detail\": \"\"}'\n" + _IDENTITY,
    "raises what tests may expect": "def double_all(n): raise AssertionError",
    "raises StopIteration": "def double_all(n): raise StopIteration",
    "raises GeneratorExit": "def double_all(n): raise GeneratorExit",
    "raises KeyboardInterrupt": "def double_all(n): raise KeyboardInterrupt",
    "raises a class of its own": "class Passed(BaseException):\n    __str__ = lambda s: 'passed'\n"
    "def double_all(n): raise Passed",
    "an exception called SystemExit": "class SystemExit(BaseException): code = 0\ndef double_all(n): raise SystemExit",
    "is no function": "class F(list):\n    __call__ = lambda s, n: s\n    __eq__ = lambda s, o: True\ndouble_all = F()",
    "a value without truth": "class E:\n    __eq__ = lambda s, o: s\n    __bool__ = lambda s: True\n"
    "    __iter__ = lambda s: iter([0.2])\ndef double_all(n): return E()",
    "an iterator without end": "import itertools\ndef double_all(n): return itertools.repeat(0)",
    "a list that contains itself": "def double_all(n):\n    a = []\n    a.append(a)\n    return a",
    "nan": "def double_all(n): return [float('nan') for _ in n]",
    "changes what it was given": "def double_all(n):\n    n[:] = [x * 2 for x in n]\n    return None",
    "a module that is not there": "raise ImportError",
    "nothing at all": "",
    "no Python": "def double_all(n) return n",
    "patches the list": "import ctypes\nclass L(list):\n    __eq__ = lambda s, o: True\ndouble_all = lambda n: L(n)",
    "answers with an object": "import json\nreal = json.dumps\n"
    "json.dumps = lambda c: real({'verdict': 'passed'})\n" + _IDENTITY,
    "answers beyond the line": "def double_all(n): return 'x' * (9 << 20)",
    "nests without end": "def double_all(n):\n    a = []\n    for _ in range(100_000): a = [a]\n    return a",
    "forgets its process": "import os\nos.close(3); os.close(4)\ndef double_all(n): return n",
}  # fmt: skip
