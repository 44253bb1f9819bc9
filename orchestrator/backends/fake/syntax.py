"""Parser of the fake box's shell: enough of POSIX sh to drive hosts and tools in tests. Pure; a script is parsed once and kept.

Done: simple commands, assignments, quoting, `$name ${name:-text} $? $$ $! $#`, `$(..)`, `| ; & && || !`, `( )`, `{ }`, `if for while until`,
`< > >> <& >&` with descriptor numbers, comments. Not done, and refused as a syntax error: here-documents, `case`, functions, arithmetic, backquotes.
File name patterns are not expanded.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPERATORS = ("&&", "||", ">>", ">&", "<&", ";", "&", "|", "(", ")", "<", ">", "\n")
ENDERS = frozenset({"then", "else", "elif", "fi", "do", "done", "}"})
REFUSED = ("<<", ";;", "$((", "`")


class ShellSyntaxError(Exception):
    """The script is not of the fake shell's language."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    default: "Word | None"
    quoted: bool


@dataclass(frozen=True, slots=True)
class Substitution:
    script: "Script"
    quoted: bool


Part = Text | Variable | Substitution
Word = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Redirect:
    """`fd` `operator` `target`: operators `<`, `>`, `>>`, `>&`, `<&`."""

    fd: int
    operator: str
    target: Word


@dataclass(frozen=True, slots=True)
class Simple:
    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True, slots=True)
class Group:
    script: "Script"
    subshell: bool
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True, slots=True)
class If:
    """Pairs of condition and body; an `else` is a pair without condition."""

    branches: "tuple[tuple[Script | None, Script], ...]"


@dataclass(frozen=True, slots=True)
class For:
    name: str
    words: tuple[Word, ...]
    body: "Script"


@dataclass(frozen=True, slots=True)
class While:
    condition: "Script"
    body: "Script"
    until: bool


Stage = Simple | Group | If | For | While


@dataclass(frozen=True, slots=True)
class Pipeline:
    stages: tuple[Stage, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """Pipelines joined by `&&` and `||`; `links[i]` stands before `pipelines[i + 1]`."""

    pipelines: tuple[Pipeline, ...]
    links: tuple[str, ...]
    background: bool


Script = tuple[Chain, ...]


@lru_cache(maxsize=1024)
def parse(text: str) -> Script:
    """Raises ShellSyntaxError."""
    parser = _Parser(text)
    script = parser.script()
    if parser.peek() is not None:
        raise ShellSyntaxError(f"unexpected {parser.peek()!r}")
    return script


class _Parser:
    """Recursive descent; tokens are read from the text as they are needed."""

    def __init__(self, text: str, at: int = 0) -> None:
        self.text = text
        self.at = at

    # Tokens

    def peek(self) -> str | None:
        """The operator ahead, or the first character of a word; None at the end."""
        self._skip_blanks()
        if self.at >= len(self.text):
            return None
        if any(self.text.startswith(bad, self.at) for bad in REFUSED):
            raise ShellSyntaxError("here-documents, case, arithmetic and backquotes are not done by the fake shell")
        return next((op for op in OPERATORS if self.text.startswith(op, self.at)), self.text[self.at])

    def _skip_blanks(self) -> None:
        while self.at < len(self.text):
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif self.text[self.at] in " \t":
                self.at += 1
            elif self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return

    def take(self, operator: str) -> bool:
        if self.peek() == operator:
            self.at += len(operator)
            return True
        return False

    def reserved(self) -> str | None:
        """The bare word ahead, if it could be a reserved one."""
        if self.peek() in ("{", "}", "!"):
            after = self.text[self.at + 1 : self.at + 2]
            return self.text[self.at] if after == "" or after in " \t\n;)" else None
        found = NAME.match(self.text, self.at)
        if found and (found.end() == len(self.text) or self.text[found.end()] in " \t\n;&|()<>"):
            return found.group()
        return None

    def want(self, word: str) -> None:
        if self.reserved() != word:
            raise ShellSyntaxError(f"{word!r} expected")
        self.at += len(word)

    def _skip_lines(self) -> None:
        while self.peek() in ("\n", ";"):
            self.at += 1

    # Grammar

    def script(self) -> Script:
        chains: list[Chain] = []
        while True:
            while self.take("\n"):
                pass
            if self.peek() in (None, ")") or self.reserved() in ENDERS:
                return tuple(chains)
            chains.append(self._chain())

    def _chain(self) -> Chain:
        pipelines, links = [self._pipeline()], []
        while (link := self.peek()) in ("&&", "||"):
            self.at += 2
            self._skip_newlines()
            links.append(str(link))
            pipelines.append(self._pipeline())
        background = self.take("&")
        if not background and not (self.take(";") or self.take("\n")) and self._must_end():
            raise ShellSyntaxError(f"unexpected {self.peek()!r}")
        return Chain(tuple(pipelines), tuple(links), background)

    def _must_end(self) -> bool:
        return self.peek() not in (None, ")") and self.reserved() not in ENDERS

    def _skip_newlines(self) -> None:
        while self.take("\n"):
            pass

    def _pipeline(self) -> Pipeline:
        negated = self.reserved() == "!"
        if negated:
            self.at += 1
        stages = [self._stage()]
        while self.take("|"):
            self._skip_newlines()
            stages.append(self._stage())
        return Pipeline(tuple(stages), negated)

    def _stage(self) -> Stage:
        word = self.reserved()
        if word == "{":
            self.at += 1
            body = self.script()
            self.want("}")
            return Group(body, False, self._redirects())
        if self.take("("):
            body = self.script()
            if not self.take(")"):
                raise ShellSyntaxError("')' expected")
            return Group(body, True, self._redirects())
        if word == "if":
            return self._if()
        if word == "for":
            return self._for()
        if word in ("while", "until"):
            return self._while(until=word == "until")
        return self._simple()

    def _if(self) -> If:
        branches: list[tuple[Script | None, Script]] = []
        self.want("if")
        while True:
            condition = self.script()
            self.want("then")
            branches.append((condition, self.script()))
            if self.reserved() != "elif":
                break
            self.want("elif")
        if self.reserved() == "else":
            self.want("else")
            branches.append((None, self.script()))
        self.want("fi")
        return If(tuple(branches))

    def _for(self) -> For:
        self.want("for")
        name = self.reserved()
        if name is None:
            raise ShellSyntaxError("'for' needs a name")
        self.at += len(name)
        self.want("in")
        words: list[Word] = []
        while self.peek() not in (None, ";", "\n"):
            words.append(self._word())
        self._skip_lines()
        self.want("do")
        body = self.script()
        self.want("done")
        return For(name, tuple(words), body)

    def _while(self, *, until: bool) -> While:
        self.want("until" if until else "while")
        condition = self.script()
        self.want("do")
        body = self.script()
        self.want("done")
        return While(condition, body, until)

    def _simple(self) -> Simple:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirects: list[Redirect] = []
        while True:
            redirect = self._redirect()
            if redirect is not None:
                redirects.append(redirect)
                continue
            if self.peek() in (None, *OPERATORS):
                break
            name = None if words else self._assigned()
            if name is None:
                words.append(self._word())
            else:
                assignments.append((name, self._word(empty=True)))
        if not (assignments or words or redirects):
            raise ShellSyntaxError(f"a command expected, not {self.peek()!r}")
        return Simple(tuple(assignments), tuple(words), tuple(redirects))

    def _assigned(self) -> str | None:
        found = NAME.match(self.text, self.at)
        if found and self.text.startswith("=", found.end()):
            self.at = found.end() + 1
            return found.group()
        return None

    def _redirects(self) -> tuple[Redirect, ...]:
        found: list[Redirect] = []
        while (redirect := self._redirect()) is not None:
            found.append(redirect)
        return tuple(found)

    def _redirect(self) -> Redirect | None:
        self.peek()
        found = re.compile(r"([0-9]?)(>>|>&|<&|<|>)").match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        fd = int(found.group(1)) if found.group(1) else int(found.group(2)[0] == ">")
        self._skip_blanks()
        return Redirect(fd, found.group(2), self._word())

    # Words

    def _word(self, *, empty: bool = False) -> Word:
        parts: list[Part] = []
        while self.at < len(self.text) and self.text[self.at] not in " \t\n;&|()<>":
            parts.extend(self._part())
        if not parts and not empty:
            raise ShellSyntaxError(f"a word expected, not {self.peek()!r}")
        return tuple(parts)

    def _part(self) -> list[Part]:
        char = self.text[self.at]
        if char == "'":
            end = self._find("'")
            text, self.at = self.text[self.at + 1 : end], end + 1
            return [Text(text, True)]
        if char == '"':
            return self._double_quoted()
        if char == "\\":
            escaped = self.text[self.at + 1 : self.at + 2]
            self.at += 2
            return [] if escaped == "\n" else [Text(escaped, True)]
        if char == "`":
            raise ShellSyntaxError("backquotes are not done by the fake shell")
        if char == "$":
            return [self._dollar(quoted=False)]
        return [Text(self._run(" \t\n;&|()<>'\"\\$`"), False)]

    def _find(self, char: str) -> int:
        end = self.text.find(char, self.at + 1)
        if end < 0:
            raise ShellSyntaxError(f"unterminated {char}")
        return end

    def _run(self, stops: str) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in stops:
            self.at += 1
        return self.text[start : self.at]

    def _double_quoted(self) -> list[Part]:
        self.at += 1
        parts: list[Part] = [Text("", True)]
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"':
                self.at += 1
                return parts
            if char == "$":
                parts.append(self._dollar(quoted=True))
            elif char == "\\":
                escaped = self.text[self.at + 1 : self.at + 2]
                if escaped != "\n":
                    parts.append(Text(escaped if escaped in '"\\$`' else "\\" + escaped, True))
                self.at += 2
            else:
                parts.append(Text(self._run('"$\\'), True))
        raise ShellSyntaxError('unterminated "')

    def _dollar(self, *, quoted: bool) -> Part:
        if self.text.startswith("$((", self.at):
            raise ShellSyntaxError("arithmetic is not done by the fake shell")
        if self.text.startswith("$(", self.at):
            inner = _Parser(self.text, self.at + 2)
            script = inner.script()
            if not inner.take(")"):
                raise ShellSyntaxError("')' expected")
            self.at = inner.at
            return Substitution(script, quoted)
        if self.text.startswith("${", self.at):
            return self._braced(quoted=quoted)
        found = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*|[0-9?$!#@*])").match(self.text, self.at)
        self.at = found.end() if found else self.at + 1
        return Variable(found.group(1), None, quoted) if found else Text("$", True)

    def _braced(self, *, quoted: bool) -> Variable:
        found = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*|[0-9?$!#])(?::-([^}]*))?\}").match(self.text, self.at)
        if not found:
            raise ShellSyntaxError("only ${name} and ${name:-text} are done by the fake shell")
        self.at = found.end()
        default = None if found.group(2) is None else (Text(found.group(2), True),)
        return Variable(found.group(1), default, quoted)
