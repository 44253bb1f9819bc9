"""Programs that look at files and change them."""

import re
from collections.abc import Mapping

from orchestrator.backends.fake.process import Complaint, Program, Shell, encoded, options_of
from orchestrator.backends.fake.tree import Dir, File, Node, Special, Symlink


def test(shell: Shell, args: list[str]) -> int:
    if args[:1] == ["!"]:
        return int(test(shell, args[1:]) == 0)
    match args:
        case [left, "=" | "==", right]:
            return int(left != right)
        case [left, "!=", right]:
            return int(left == right)
        case [left, "-eq" | "-ne" | "-lt" | "-le" | "-gt" | "-ge" as operator, right]:
            return int(not _compared(int(left), operator, int(right)))
        case ["-n", text]:
            return int(not text)
        case ["-z", text]:
            return int(bool(text))
        case [option, path] if option.startswith("-"):
            return int(option == "-t" or not _is(option, path, shell))  # no descriptor is a terminal
        case [text]:
            return int(not text)
        case []:
            return 1
    raise Complaint("unknown expression", 2)


def _compared(left: int, operator: str, right: int) -> bool:
    return {
        "-eq": left == right,
        "-ne": left != right,
        "-lt": left < right,
        "-le": left <= right,
        "-gt": left > right,
        "-ge": left >= right,
    }[operator]


def _is(option: str, path: str, shell: Shell) -> bool:
    node = shell.node(path, follow=option not in ("-L", "-h"))
    match option:
        case "-e":
            return node is not None
        case "-f":
            return isinstance(node, File)
        case "-d":
            return isinstance(node, Dir)
        case "-L" | "-h":
            return isinstance(node, Symlink)
        case "-p":
            return isinstance(node, Special)
        case "-s":
            return isinstance(node, File) and node.size_bytes > 0
        case "-r":
            return isinstance(node, Dir) or (isinstance(node, File) and bool(node.mode & 0o444))
        case "-w":
            return node is not None and shell.places.holds(shell.locate(path))
        case "-x":
            return isinstance(node, Dir) or (isinstance(node, File) and bool(node.mode & 0o111))
    raise Complaint(f"{option}: unknown test", 2)


def bracket(shell: Shell, args: list[str]) -> int:
    if args[-1:] != ["]"]:
        raise Complaint("missing ]", 2)
    return test(shell, args[:-1])


def rm(shell: Shell, args: list[str]) -> int:
    options, paths = options_of(args, "rfR")
    for path in paths:
        node = shell.node(path, follow=False)
        if node is None:
            if "f" not in options:
                raise Complaint(f"cannot remove '{path}': No such file or directory")
            continue
        if isinstance(node, Dir) and not {"r", "R"} & options:
            raise Complaint(f"cannot remove '{path}': Is a directory")
        shell.tree.remove(shell.writable(path, follow=False))
    return 0


def mkdir(shell: Shell, args: list[str]) -> int:
    options, paths = options_of(args, "p")
    for path in paths:
        parts = shell.writable(path)
        there = shell.node(path)
        if there is not None and not ("p" in options and isinstance(there, Dir)):
            raise Complaint(f"cannot create directory '{path}': File exists")
        if there is None:
            shell.tree.put(parts, Dir(owner=shell.tree), parents="p" in options)
    return 0


def touch(shell: Shell, args: list[str]) -> int:
    paths = list(args)
    while paths and re.fullmatch(r"-[dtr]", paths[0]):  # times are not kept
        paths = paths[2:]
    for path in paths:
        if shell.node(path) is None:
            shell.open_out(path, append=True)
    return 0


def copy(shell: Shell, args: list[str]) -> int:
    options, paths = options_of(args, "rRa")
    for source, target in _pairs(shell, paths):
        node = shell.node(source)
        if node is None:
            raise Complaint(f"cannot stat '{source}': No such file or directory")
        if isinstance(node, Dir) and not options:
            raise Complaint(f"-r not specified; omitting directory '{source}'")
        shell.place(target, _cloned(node, shell))
    return 0


def _cloned(node: Node, shell: Shell) -> Node:
    if isinstance(node, Dir):
        return Dir({name: _cloned(child, shell) for name, child in node.children.items()}, node.mode, shell.tree)
    return node


def move(shell: Shell, args: list[str]) -> int:
    for source, target in _pairs(shell, options_of(args, "f")[1]):
        node = shell.node(source, follow=False)
        if node is None:
            raise Complaint(f"cannot stat '{source}': No such file or directory")
        shell.tree.remove(shell.writable(source, follow=False))
        shell.place(target, node)
    return 0


def link(shell: Shell, args: list[str]) -> int:
    options, paths = options_of(args, "sfn")
    if len(paths) != 2:
        raise Complaint("two names are needed")
    target, name = paths
    if isinstance(shell.node(name), Dir):
        name = f"{name}/{target.rpartition('/')[2]}"
    if shell.node(name, follow=False) is not None and "f" not in options:
        raise Complaint(f"failed to create link '{name}': File exists")
    if "s" in options:
        shell.place(name, Symlink(target))
    else:
        shell.place(name, File.of(shell.content(target)))
    return 0


def _pairs(shell: Shell, paths: list[str]) -> list[tuple[str, str]]:
    if len(paths) < 2:
        raise Complaint("missing file operand")
    *sources, target = paths
    if isinstance(shell.node(target), Dir):
        return [(source, f"{target}/{source.rstrip('/').rpartition('/')[2]}") for source in sources]
    if len(sources) > 1:
        raise Complaint(f"target '{target}' is not a directory")
    return [(sources[0], target)]


def mkfifo(shell: Shell, args: list[str]) -> int:
    for path in args:
        shell.place(path, Special())
    return 0


def chmod(shell: Shell, args: list[str]) -> int:
    for path in args[1:]:
        node = shell.node(path)
        if node is None or isinstance(node, Symlink):
            raise Complaint(f"cannot access '{path}': No such file or directory")
        shell.place(path, _with_mode(node, _mode(args[0], node.mode), shell))
    return 0


def _mode(text: str, before: int) -> int:
    if re.fullmatch(r"[0-7]{1,4}", text):
        return int(text, 8)
    found = re.fullmatch(r"[ua]?([+-])([rwx]+)", text)
    if not found:
        raise Complaint(f"invalid mode: '{text}'")
    bits = sum({"r": 0o444, "w": 0o200, "x": 0o111}[letter] for letter in set(found.group(2)))
    return before | bits if found.group(1) == "+" else before & ~bits


def _with_mode(node: File | Dir | Special, mode: int, shell: Shell) -> Node:
    match node:
        case File():
            return File(node.data, mode, node.source, node.size_bytes)
        case Dir():
            return Dir(dict(node.children), mode, shell.tree)
        case Special():
            return Special(mode)


def ls(shell: Shell, args: list[str]) -> int:
    options, paths = options_of(args, "a1A")
    for path in paths or ["."]:
        node = shell.node(path)
        if node is None:
            raise Complaint(f"cannot access '{path}': No such file or directory", 2)
        names = sorted(node.children) if isinstance(node, Dir) else [path]
        shell.out(b"".join(encoded(name) + b"\n" for name in names if options & {"a", "A"} or not name.startswith(".")))
    return 0


def readlink(shell: Shell, args: list[str]) -> int:
    node = shell.node(args[0], follow=False)
    if not isinstance(node, Symlink):
        return 1
    shell.out(encoded(node.target) + b"\n")
    return 0


FILE_PROGRAMS: Mapping[str, Program] = {
    "[": bracket,
    "chmod": chmod,
    "cp": copy,
    "ln": link,
    "ls": ls,
    "mkdir": mkdir,
    "mkfifo": mkfifo,
    "mv": move,
    "readlink": readlink,
    "rm": rm,
    "test": test,
    "touch": touch,
}
