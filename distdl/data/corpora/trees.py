"""Labelled binary trees over words, in the bracketed form of treebanks (Penn Treebank, Stanford Sentiment; .gz too).

    (3 (2 (2 the) (3 good)) (2 plot))       words: the good plot       nodes, bottom-up:
    number     0      1      2        3                4
    word       the    good   plot     -                -
    children   -      -      -        0 1              3 2
    height     0      0      0        1                2
    label      2      3      2        2                3

A row is one tree, the words first, then the inner nodes by height; children are numbers of nodes of the row, so a batch is
computed height by height. A node of one child becomes one with it (NP over NNS: NP+NNS), a node of more than two is split
from the left (X -> A B C: X -> A @X, @X -> B C), and traces and function tags (NP-SBJ) go, as is usual for treebanks.

Without a path: sentences about films from a small grammar, labelled with sentiments or with categories. No download.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows, read_blocks
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError

UNKNOWN, OTHER, NONE = "<unknown>", "other", 255
"""The word of number 0, the label of phrases with other corners, and the height and the label of padding."""
CHUNK_ROWS = 2048
SIGN = re.compile(r"[()]|[^() \t\r]+")  # a no-break space is part of a word (8 1/2)

Tree = tuple[str, "str | tuple[Tree, Tree]"]
"""A label, and a word or two trees."""


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `trees`."""

    path: str = ""
    """File of bracketed trees; empty: trees of a small grammar."""
    test_path: str = ""
    """A file of trees that becomes the split `test`; then nothing is held out of `path`."""
    longest: int = 0
    """Words of the longest tree that is kept; longer ones are left out. 0: all are kept."""
    vocabulary: int = 0
    """Words that have a number, the unknown one included: the most frequent of the training trees. 0: all."""
    lower: bool = True
    """Read words in lower case."""
    corners: int = 0
    """Label every node with its first word, if that is one of so many most frequent ones, else `other`; 0: labels as given.
    It makes categories of a kind where the file has none."""
    labels: str = "sentiment"
    """Of the small grammar: sentiment, 0 to 4, or category, S, NP, ..."""
    rows: int = 2000
    """Trees that the small grammar makes."""
    seed: int = 0
    """Seed of these trees."""


def prepare(options: Options) -> Prepared:
    """For a tree's nodes: `word` uint16, `children` int16 (2), `height` uint8, `label` uint8; 255 is no node."""
    splitter = Splitter(options, where=options.path, tested=bool(options.test_path))
    trees = _read(options.path, options) if options.path else _made(options)
    held_out = _read(options.test_path, options) if options.test_path else []
    counts = Counter(word for tree in trees for word in leaves(tree))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    if options.corners:
        trees, held_out = (
            [_cornered(tree, set(ranked[: options.corners])) for tree in part] for part in (trees, held_out)
        )
    words = [UNKNOWN, *(ranked[: options.vocabulary - 1] if options.vocabulary else ranked)]
    labels = sorted({label for tree in trees + held_out for label in _labels(tree)})
    if len(words) > 2**16 or len(labels) >= NONE:
        what = f"{len(words)} words and {len(labels)} labels"
        raise InputError(what, allowed=f"{2**16} words and {NONE - 1} labels", fix="vocabulary=65536, or fewer labels")
    longest = options.longest or max(len(leaves(tree)) for tree in trees + held_out)
    nodes = 2 * longest - 1
    if nodes > 2**15:
        raise InputError(f"a sentence has {longest} words", allowed="16,384", fix="longest=100 leaves longer ones out")
    columns = {
        "word": Column("uint16", (nodes,)),
        "children": Column("int16", (nodes, 2)),
        "height": Column("uint8", (nodes,)),
        "label": Column("uint8", (nodes,)),
    }
    numbers = ({word: i for i, word in enumerate(words)}, {label: i for i, label in enumerate(labels)})
    chunks = splitter.parts(
        lambda: _chunks(trees, numbers, nodes), (lambda: _chunks(held_out, numbers, nodes)) if held_out else None
    )
    return Prepared(columns, chunks, {"words": words, "labels": labels, "split": splitter.record()})


def leaves(tree: Tree) -> list[str]:
    """The words of a tree, from the left."""
    _, inside = tree
    return [inside] if isinstance(inside, str) else leaves(inside[0]) + leaves(inside[1])


def _labels(tree: Tree) -> set[str]:
    label, inside = tree
    return {label} if isinstance(inside, str) else {label} | _labels(inside[0]) | _labels(inside[1])


def _cornered(tree: Tree, known: set[str]) -> Tree:
    _, inside = tree
    if isinstance(inside, str):
        return (inside if inside in known else OTHER), inside
    left, right = _cornered(inside[0], known), _cornered(inside[1], known)
    return left[0], (left, right)


def _chunks(trees: list[Tree], numbers: tuple[dict[str, int], dict[str, int]], nodes: int) -> Iterator[Rows]:
    for start in range(0, len(trees), CHUNK_ROWS):
        rows = [row(tree, *numbers, nodes) for tree in trees[start : start + CHUNK_ROWS]]
        yield {name: np.stack([r[name] for r in rows]) for name in rows[0]}


def row(tree: Tree, words: dict[str, int], labels: dict[str, int], nodes: int) -> Rows:
    """One tree as the arrays of its nodes."""
    found: list[tuple[int, int, str, str, tuple[int, ...]]] = []  # height, first word, label, word, children in `found`
    first = itertools.count()

    def visit(tree: Tree) -> int:
        label, inside = tree
        if isinstance(inside, str):
            found.append((0, next(first), label, inside, ()))
        else:
            pair = (visit(inside[0]), visit(inside[1]))
            found.append((1 + max(found[i][0] for i in pair), found[pair[0]][1], label, "", pair))
        return len(found) - 1

    visit(tree)
    if found[-1][0] >= NONE:
        what = f"a tree of {next(first)} words is {found[-1][0]} levels high"
        raise InputError(what, allowed=f"{NONE - 1} levels", fix="longest=100 leaves long sentences out")
    order = sorted(range(len(found)), key=lambda i: found[i][:2])
    place = {old: new for new, old in enumerate(order)}
    made: dict[str, np.ndarray] = {
        "word": np.zeros(nodes, np.uint16),
        "children": np.zeros((nodes, 2), np.int16),
        "height": np.full(nodes, NONE, np.uint8),
        "label": np.full(nodes, NONE, np.uint8),
    }
    for new, old in enumerate(order):
        height, _, label, word, pair = found[old]
        made["height"][new], made["label"][new], made["word"][new] = height, labels[label], words.get(word, 0)
        if pair:
            made["children"][new] = [place[i] for i in pair]
    return made


# -- brackets ----------------------------------------------------------------------------------------------------------


def _read(path: str, options: Options) -> list[Tree]:
    try:
        text = b"".join(read_blocks(path)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error
    try:
        found = [tree for tree in parse(text, path, options.lower) if not 0 < options.longest < len(leaves(tree))]
    except RecursionError:
        raise InputError(f"{path} holds a tree of a thousand levels or more", allowed=f"{NONE - 1} levels") from None
    if not found:
        what = f"{path} holds no tree" + (f" of {options.longest} words or fewer" if options.longest else "")
        raise InputError(what, allowed="trees such as (3 (2 a) (3 (3 good) (2 plot)))")
    return found


def parse(text: str, path: str, lower: bool) -> Iterator[Tree]:
    """The trees of a text, made binary. InputError names the line of a bracket that does not fit."""
    stack: list[list[str | Tree]] = []
    for number, line in enumerate(text.split("\n"), 1):
        for sign in SIGN.findall(line):
            if sign == "(":
                stack.append([])
            elif not stack or (sign == ")" and not stack[-1]):
                raise InputError(f"{path}:{number}: {sign!r} is not inside a node", fix="check the brackets")
            elif sign != ")":
                stack[-1].append(sign)
            else:
                tree = _binary(stack.pop(), lower, f"{path}:{number}")
                if stack and tree:
                    stack[-1].append(tree)
                elif tree:
                    yield tree
    if stack:
        raise InputError(f"{path}: {len(stack)} bracket{'s' * (len(stack) > 1)} not closed at its end")


def _binary(parts: list[str | Tree], lower: bool, where: str) -> Tree | None:
    """A node from its label and what it holds; None where nothing is left of it."""
    label = parts.pop(0) if parts and isinstance(parts[0], str) else ""
    if parts and isinstance(parts[0], str):
        if len(parts) > 1:
            raise InputError(f"{where}: a node holds the word {parts[0]!r} and something else", fix="one word a node")
        return None if label == "-NONE-" else (str(label), parts[0].lower() if lower else parts[0])
    trees: list[Tree] = [part for part in parts if not isinstance(part, str)]
    plain = re.split(r"[-=|]", str(label))[0] or str(label)  # NP-SBJ-1 is NP; -LRB- stays
    if len(trees) == 1:  # the bracket around a whole tree has no label
        below, inside = trees[0]
        return (f"{plain}+{below}" if plain and plain != below else below), inside
    while len(trees) > 2:
        trees[-2:] = [(f"@{plain}", (trees[-2], trees[-1]))]
    return (plain, (trees[0], trees[1])) if trees else None


# -- a small grammar ---------------------------------------------------------------------------------------------------

WORDS = {  # category -> word -> what it adds to the sentiment
    "DT": {"the": 0, "a": 0, "this": 0},
    "NN": {"film": 0, "plot": 0, "cast": 0, "actor": 0, "story": 0, "mess": -1, "gem": 1},
    "JJ": {"awful": -2, "bad": -1, "long": 0, "red": 0, "good": 1, "superb": 2},
    "RB": {"very": 0, "not": 0, "quite": 0},
    "V": {"hated": -1, "saw": 0, "reviewed": 0, "loved": 1},
    "IN": {"with": 0},
    "TOOL": {"joy": 1, "anger": -1, "care": 0},
    "PART": {"music": 0, "songs": 0, "flaws": -1, "charm": 1},
}
"""What is said after `with` tells what it belongs to: one reviews with anger, but a film is with songs. Rules of categories
alone cannot tell."""


def _made(options: Options) -> list[Tree]:
    if options.labels not in ("sentiment", "category"):
        raise InputError(f"labels is {options.labels!r}", allowed="sentiment, category")
    random = np.random.default_rng(options.seed)
    return [_labelled(_sentence(random), options.labels == "sentiment") for _ in range(options.rows)]


Made = tuple[str, int, "str | tuple[Made, Made]"]
"""A category, a sentiment, and a word or two nodes."""


def _labelled(node: Made, sentiments: bool) -> Tree:
    category, sentiment, inside = node
    label = str(min(max(sentiment, -2), 2) + 2) if sentiments else category
    return label, inside if isinstance(inside, str) else (
        _labelled(inside[0], sentiments),
        _labelled(inside[1], sentiments),
    )


def _sentence(random: np.random.Generator) -> Made:
    def word(kind: str) -> Made:
        chosen = list(WORDS[kind])[int(random.integers(len(WORDS[kind])))]
        return ("NN" if kind in ("TOOL", "PART") else kind), WORDS[kind][chosen], chosen

    def join(category: str, left: Made, right: Made) -> Made:
        sentiment = {"not": -right[1], "very": 2 * right[1]}.get(str(left[2]), left[1] + right[1])
        return category, sentiment, (left, right)

    def noun_phrase() -> Made:
        kind, noun = int(random.integers(3)), word("NN")
        if kind:
            noun = join("NN", word("JJ") if kind == 1 else join("JJ", word("RB"), word("JJ")), noun)
        return join("NP", word("DT"), noun)

    subject, verb, seen = noun_phrase(), word("V"), noun_phrase()
    kind = ("", "TOOL", "PART")[int(random.integers(3))]
    phrase = join("PP", word("IN"), word(kind)) if kind else None
    if phrase and kind == "PART":
        seen = join("NP", seen, phrase)
    said = join("VP", verb, seen)
    return join("S", subject, join("VP", said, phrase) if phrase and kind == "TOOL" else said)
