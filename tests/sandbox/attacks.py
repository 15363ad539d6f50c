"""165 programs that try to have an effect outside their sandbox, in eleven classes of fifteen.

Each is a few lines after `PRELUDE`. One that succeeds says so (`effect()`), or leaves traces that the test looks for.
An attack that needs what the machine lacks fails by itself. `FREE` has the places of attacks that harm
nothing here: they are shown to succeed without a sandbox.
"""

# ruff: noqa: E501  programs in one line each

from __future__ import annotations

PRELUDE = """
import ctypes, json, mmap, os, pathlib, resource, signal, socket, struct, subprocess, sys, threading, time
facts = json.loads({facts!r})
libc = ctypes.CDLL(None, use_errno=True)
def effect(found=True):
    if found: os.write(1, b"EFFECT" + str(found).encode()[:200])
def call(number, *arguments):
    effect(libc.syscall(number, *arguments) >= 0)
def reads(path):
    with open(path, "rb") as file: effect(file.read(100))
def connects(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as line:
        line.settimeout(0.3); line.connect(address); line.send(b"hello"); effect()
"""

Attacks = tuple[str, ...]

# What of other people's packages a program finds where its interpreter keeps them, and whether one can be imported; at
# the end a word from the standard library.
PACKAGES = """
import glob, os, sys
places = {path for base in {sys.base_prefix, sys.base_exec_prefix, "/usr", "/usr/local"}
          for path in glob.glob(base + "/lib*/python*/*-packages")}
print(sorted(name for path in places for name in os.listdir(path) if name != "README.txt"))
sys.path += sorted(places)
try:
    import pip
    print(pip.__file__)
except ModuleNotFoundError as error:
    print(error)
import json.tool, sqlite3.dbapi2
print(json.dumps("here"))
"""
READ: Attacks = (
    "reads(facts['secret'])",
    "effect(os.listdir(facts['folder']))",
    "reads('/etc/passwd')",
    "reads('/etc/shadow')",
    "reads('/proc/1/cmdline')",
    "effect(os.stat(facts['secret']).st_size)",
    "os.symlink(facts['secret'], 'link'); reads('link')",
    "os.link(facts['secret'], 'link'); reads('link')",
    "reads('/program/../../../..' + facts['secret'])",
    "os.chdir('/'); os.chdir('..'); effect(any(os.path.exists(name) and not sys.base_prefix.startswith('/' + name) for name in ('tmp', 'home', 'old')))",
    "os.chroot('.'); [os.chdir('..') for _ in range(50)]; os.chroot('.'); reads(facts['secret'])",
    "reads('/old' + facts['secret'])",
    "effect([name for name in os.listdir('/') if name in ('home', 'tmp', 'var', 'mnt', 'boot', 'opt', 'srv') and not sys.base_prefix.startswith('/' + name)])",
    "fd = libc.open(facts['secret'].encode(), 0); effect(fd >= 0)",
    "[effect(1) for fd in range(3, 1024) if libc.fcntl(fd, 1) >= 0]",
)
WRITE: Attacks = (
    "pathlib.Path(facts['target']).write_text('x'); effect()",
    "open(os.__file__, 'ab').close(); effect()",
    "pathlib.Path(os.path.dirname(os.__file__), 'planted.py').write_text('x'); effect()",
    "pathlib.Path('/program/planted').write_text('x'); effect()",
    "open('/program/program.py', 'ab').close(); effect()",
    "os.remove(facts['secret']); effect()",
    "os.truncate(facts['secret'], 0); effect()",
    "os.rename('/program', '/elsewhere'); effect()",
    "os.mkdir('/planted'); effect()",
    "os.chmod('/program', 0o777); pathlib.Path('/program/planted').write_text('x'); effect()",
    "os.utime(facts['secret']); effect()",
    "pathlib.Path('/dev/planted').write_text('x'); effect()",
    "pathlib.Path('/etc/planted').write_text('x'); effect()",
    "os.symlink(facts['folder'], 'out'); pathlib.Path('out/planted').write_text('x'); effect()",
    "os.setxattr('/program/program.py', 'user.planted', b'x'); effect()",
)
NETWORK: Attacks = (
    "connects(socket.AF_INET, ('127.0.0.1', facts['port']))",
    "connects(socket.AF_INET, ('localhost', facts['port']))",
    "connects(socket.AF_INET6, ('::1', facts['port']))",
    "connects(socket.AF_INET, ('127.0.0.1', facts['datagrams']), socket.SOCK_DGRAM)",
    "connects(socket.AF_UNIX, facts['socket'])",
    "connects(socket.AF_UNIX, chr(0) + facts['abstract'])",
    "line = socket.socket(); line.bind(('0.0.0.0', 0)); line.listen(); effect()",
    "line = socket.socket(socket.AF_UNIX); line.bind(chr(0) + 'planted'); effect()",
    "line = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); effect()",
    "line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); effect()",
    "line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); line.bind((0, 0)); effect()",
    "effect(socket.getaddrinfo('example.org', 80))",
    "import urllib.request; effect(urllib.request.urlopen(f\"http://127.0.0.1:{facts['port']}\", timeout=0.3).status)",
    "fd = libc.socket(2, 1, 0); effect(fd >= 0)",
    "effect(libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0)",
)
PROCESSES: Attacks = (
    "if os.fork() == 0: effect(); os._exit(0)\nos.wait()",
    "for n in range(30):\n    if os.fork() == 0: time.sleep(0.2); os._exit(0)\neffect()",
    "subprocess.run([sys.executable, '-c', 'pass'], check=True); effect()",
    "os.posix_spawn(sys.executable, [sys.executable, '-c', 'pass'], {}); effect()",
    "effect(os.system('true') == 0)",
    "effect(libc.vfork() > 0)",
    "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start(); effect()",
    "import multiprocessing as m; p = m.get_context('spawn').Process(target=print); p.start(); effect()",
    "import pty; pty.fork(); effect()",
    "call(57)",
    "call(56, 17, 0, 0, 0, 0)",
    "call(435, (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17), 88)",
    "call(0x40000000 + 57)",
    "[threading.Thread(target=time.sleep, args=(0.3,)).start() for _ in range(400)]; effect()",
    "import asyncio\nasync def f():\n    p = await asyncio.create_subprocess_exec('/bin/true'); effect()\nasyncio.run(f())",
)
MEMORY: Attacks = (
    "effect(len(bytearray(700 << 20)) > 0)",
    "effect(len([0] * (100 << 20)) > 0)",
    "effect(mmap.mmap(-1, 700 << 20) is not None)",
    "parts = []\nfor n in range(70): parts.append(bytearray(10 << 20))\neffect()",
    "libc.malloc.restype = ctypes.c_void_p; effect(libc.malloc(ctypes.c_size_t(700 << 20)) is not None)",
    "text = 'x' * 1000\nwhile len(text) < 700 << 20: text += text\neffect()",
    "resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); effect(len(bytearray(700 << 20)) > 0)",
    "open('big', 'wb').write(bytes(1)); os.truncate('big', 700 << 20); effect()",
    "fd = os.memfd_create('x'); os.ftruncate(fd, 700 << 20); effect()",
    "effect(libc.shmget(0, ctypes.c_size_t(64 << 20), 0o1600) >= 0)",
    "from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=64 << 20); effect()",
    "libc.mlockall(3) == 0 and effect()",
    "fd = os.open('big', 66); os.posix_fallocate(fd, 0, 64 << 20); effect()",
    "files = [os.pipe() for _ in range(600)]; effect()",
    "libc.mmap.restype = ctypes.c_void_p\n"
    "effect(libc.mmap(None, ctypes.c_size_t(700 << 20), 3, 34, -1, 0) not in (None, 2 ** 64 - 1))",
)
TIME: Attacks = (
    "while True: pass",
    "time.sleep(1.2); effect()",
    "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile time.process_time() < 1.2: pass\neffect()",
    "signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(1.2); effect()",
    "[signal.signal(n, signal.SIG_IGN) for n in range(1, 65) if n not in (9, 19, 32, 33)]; time.sleep(1.2); effect()",
    "resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\nwhile time.process_time() < 1.2: pass\neffect()",
    "10 ** 10 ** 9",
    "import re; re.match('(a+)+$', 'a' * 64 + 'b')",
    "for n in range(3): threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()",
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(1.2); effect()",
    "import atexit; atexit.register(lambda: (time.sleep(1.2), effect()))",
    "def f(): yield from f()\nsys.setrecursionlimit(10 ** 9)\ntry: list(f())\nfinally: time.sleep(1.2); effect()",
    "os.sched_setaffinity(0, range(os.cpu_count())); os.nice(-5); effect()",
    "class A:\n    def __del__(self): time.sleep(1.2); effect()\na = A()",
    "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(1.2); effect()",
)
FLOODS: Attacks = (
    "while True: os.write(1, b'x' * 65536)",
    "while True: os.write(2, b'x' * 65536)",
    "while True: print('x' * 1000)",
    "sys.stdout.write('x' * (5 << 20)); sys.stdout.flush()",
    "open('big', 'wb').write(bytes(64 << 20)); effect()",
    "for n in range(8): open(f'part{n}', 'wb').write(bytes(10 << 20))\neffect()",
    "for n in range(100_000): open(f'file{n}', 'w').close()\neffect()",
    "for n in range(100_000): os.mkdir(f'folder{n}')\neffect()",
    "files = [open('/dev/null') for _ in range(500)]; effect()",
    "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)); open('big', 'wb').write(bytes(64 << 20)); effect()",
    "for n in range(100_000): os.symlink('x' * 200, f'link{n}')\neffect()",
    "open('/dev/shm/big', 'wb').write(bytes(1 << 20)); effect()",
    "open(os.path.join('/tmp', 'big'), 'wb').write(bytes(1 << 20)); effect()",
    "resource.setrlimit(resource.RLIMIT_CORE, (-1, -1)); effect(resource.getrlimit(resource.RLIMIT_CORE)[0] != 0)",
    "import syslog; syslog.syslog('planted'); open('/dev/kmsg', 'w').write('planted'); effect()",
)
SIGNALS: Attacks = (
    "os.kill(facts['victim'], 15); effect()",
    "os.kill(facts['victim'], 9); effect()",
    "os.kill(facts['victim'], 0); effect()",
    "os.killpg(facts['victim'], 9); effect()",
    "os.kill(facts['parent'], 0); effect()",
    "os.kill(-1, 15); effect(False)",
    "effect(os.getppid() not in (0, 1))",
    "effect(os.pidfd_open(facts['victim']) >= 0)",
    "effect(os.getpgid(facts['victim']) > 0)",
    "os.setpriority(os.PRIO_PROCESS, facts['victim'], 19); effect()",
    "os.sched_setaffinity(facts['victim'], [0]); effect()",
    "resource.prlimit(facts['victim'], resource.RLIMIT_CPU, (1, 1)); effect()",
    "signal.sigqueue = libc.sigqueue(facts['victim'], 9, 0) == 0 and effect()",
    "libc.ptrace(16, facts['victim'], 0, 0) == 0 and effect()",
    "for pid in range(2, 65536):\n    try: os.kill(pid, 0)\n    except PermissionError: effect(pid)\n"
    "    except OSError: continue\n    else: effect(pid not in (os.getpid(), os.getpid() - 1) and pid)",
)
SECRETS: Attacks = (
    "effect([n for n in os.environ if n not in ('PATH', 'HOME', 'LANG', 'OMP_NUM_THREADS', 'PWD', 'LC_CTYPE')])",
    "reads('/proc/self/environ')",
    "reads(f\"/proc/{facts['parent']}/environ\")",
    "reads(f\"/proc/{facts['victim']}/environ\")",
    'reads(f"/proc/{os.getppid()}/environ")',
    "reads(os.path.expanduser('~/.ssh/id_rsa')); reads(os.path.expanduser('~root/.bashrc'))",
    "[effect(p) for p in ('/root/.bashrc', '/root/.profile', '/root/.netrc', '/root/.cache') if os.path.exists(p)]",
    "import pwd; effect([one for one in pwd.getpwall()])",
    "effect(socket.gethostname() == facts['host'])",
    "effect(open('/proc/mounts').read())",
    "reads('/proc/self/mem'); effect()",
    "effect(os.path.exists('/sys/class') or os.path.exists('/sys/kernel'))",
    "effect(os.path.exists('/var/run/docker.sock') or os.path.exists('/run/secrets'))",
    "libc.getenv.restype = ctypes.c_char_p; effect(libc.getenv(b'STILLHOUSE_CANARY'))",
    "import gc; effect([1 for o in gc.get_objects() if type(o) is dict and 'STILLHOUSE_CANARY' in o])",
)
ESCAPES: Attacks = (
    "effect(libc.unshare(0x10000000) == 0)",
    "effect(libc.unshare(0x20000) == 0)",
    "effect(libc.mount(b'none', b'/desk', b'tmpfs', 0, None) == 0)",
    "effect(libc.umount2(b'/program', 2) == 0)",
    "effect(libc.mount(None, b'/', None, 32, None) == 0)",
    "os.setuid(0); effect()",
    "effect(os.getuid() == 0 or os.geteuid() == 0)",
    "caps = (ctypes.c_uint32 * 6)(); libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), caps); effect(any(caps))",
    "os.mknod('disk', 0o60666, os.makedev(254, 0)); reads('disk')",
    "effect(libc.prctl(1, 0, 0, 0, 0) == 0)",
    "effect(libc.prctl(38, 0, 0, 0, 0) == 0 or libc.prctl(39, 0, 0, 0, 0) != 1)",
    "call(321, 0, ctypes.create_string_buffer(128), 128)",
    "call(323, 1)",
    "call(250, 0, -3, 0)",
    "call(56, 0x10000000 | 17, 0, 0, 0, 0)",
)
_LATER = "time.sleep(0.6); open(facts['target'], 'w').close()"
_CHILD = f'"import json, sys, time; facts = json.loads(sys.argv[1]); {_LATER}"'
PERSISTENCE: Attacks = (
    f"if os.fork() == 0: os.setsid(); {_LATER}; os._exit(0)",
    f"if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: {_LATER}\n    os._exit(0)",
    f"if os.fork() == 0: signal.pthread_sigmask(0, range(1, 65)); {_LATER}; os._exit(0)",
    f"subprocess.Popen([sys.executable, '-c', {_CHILD}, json.dumps(facts)])",
    "subprocess.Popen(['sh', '-c', f\"sleep 0.6; touch {facts['target']}\"], start_new_session=True)",
    "os.system(f\"(sleep 0.6; touch {facts['target']}) &\")",
    f"os.posix_spawn(sys.executable, [sys.executable, '-c', {_CHILD}, json.dumps(facts)], {{}})",
    "threading.Thread(target=lambda: (time.sleep(0.3), effect())).start(); os._exit(0)",
    "threading.Thread(target=lambda: (time.sleep(0.3), effect()), daemon=True).start()",
    "os.makedirs('/root/.config/autostart'); open('/root/.config/autostart/planted', 'w').close(); effect()",
    "open('/etc/cron.d/planted', 'w').close(); effect()",
    "import sysconfig as s; pathlib.Path(s.get_path('purelib'), 'planted.pth').write_text('x'); effect()",
    "pathlib.Path(sys.executable).write_bytes(b'x'); effect()",
    "open('/etc/ld.so.preload', 'w').close(); effect()",
    "effect(os.path.exists('left')); open('left', 'w').close()",
)
CLASSES: dict[str, Attacks] = {
    "read": READ, "write": WRITE, "network": NETWORK, "processes": PROCESSES, "memory": MEMORY, "time": TIME,
    "floods": FLOODS, "signals": SIGNALS, "secrets": SECRETS, "escapes": ESCAPES,
    "persistence": PERSISTENCE,
}  # fmt: skip
FREE: dict[str, tuple[int, ...]] = {
    "read": (0, 1, 2, 4, 5, 6), "write": (0, 13), "network": (0, 1, 4, 5, 6), "processes": (0, 1, 2, 4, 9),
    "memory": (2, 4, 7, 8, 14), "time": (1, 9), "floods": (3, 4, 5, 8), "signals": (2, 4, 7, 8),
    "secrets": (0, 1, 3, 4, 8), "escapes": (9,), "persistence": (0, 5),
}  # fmt: skip
