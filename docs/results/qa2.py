"""JSON lines of bAbI's qa2 for docs/results/language.md: python3 qa2.py TRAIN TEST, the published files

carry.jsonl    what one person did with one thing, two to four statements, and at times somebody else's statement between them
window.jsonl   four to eight statements of a story one after the other, in which a thing's place is said
start.jsonl    stories of at most sixteen statements, from their beginning
held.jsonl     60 of those of the last 200 stories, which no other file has, the file's own question alone
test.jsonl     every third of those of the published test file, likewise

A line of the first three asks where things are, who had them last, where people are and what they did last.
"""

import json
import random
import sys
from collections import Counter

GOT, LEFT = ("picked up", "got", "took", "grabbed"), ("dropped", "left", "put down", "discarded")


def stories(path):
    """Each story as a list of statements and of (question, answer, number of statements before it)."""
    statements, questions = [], []
    for line in open(path):
        number, text = line.rstrip("\n").split(" ", 1)
        if number == "1" and statements:
            yield statements, questions
            statements, questions = [], []
        if "\t" in text:
            query, answer, _ = text.split("\t")
            questions.append((query.strip(), answer, len(statements)))
        else:
            statements.append(text.rstrip("."))
    yield statements, questions


def event(statement):
    """Who, what kind (move, got, left), which place or thing."""
    words = statement.removesuffix(" there").split()
    said = lambda verbs: any(f" {verb} the" in statement for verb in verbs)
    return words[0], "got" if said(GOT) else "left" if said(LEFT) else "move", words[-1]


def follow(statements):
    """Where people and things are, and who had each thing last, as far as the statements say."""
    place, holder, things, had = {}, {}, {}, {}
    for statement in statements:
        who, kind, what = event(statement)
        if kind == "move":
            place[who] = what
        elif kind == "got":
            holder[what] = had[what] = who
        else:
            holder.pop(what, None)
            had[what] = who
            if who in place:
                things[what] = place[who]
            else:
                things.pop(what, None)
            continue
        for thing, name in holder.items():
            if name in place:
                things[thing] = place[name]
            else:
                things.pop(thing, None)
    return place, things, had


def line(statements, count):
    place, things, had = follow(statements)
    last = dict(text.split(" ", 1) for text in statements)
    things, had, place, did = [draw.sample(sorted(some.items()), len(some)) for some in (things, had, place, last)]
    ask = [{"query": f"Where is the {thing}? ", "target": where} for thing, where in things[:2]]
    ask += [{"query": f"Who had the {thing}? ", "target": who} for thing, who in had[:1]]
    ask += [{"query": f"What did {who} do? ", "target": text + "."} for who, text in did[:1]]
    ask += [{"query": f"Where is {who}? ", "target": where} for who, where in place[:2]]
    draw.shuffle(ask := ask[:count])
    return {"context": ". ".join(statements) + ". ", "questions": ask}


def carry(statements):
    """The last time that one person had one thing: where it was taken and what came after, and at times somebody else's statement."""
    events = [event(text) for text in statements]
    takes = [at for at, (_, kind, _) in enumerate(events) if kind == "got"]
    if not takes:
        return None
    take = draw.choice(takes)
    who, _, thing = events[take]
    before = [at for at in range(take) if events[at][:2] == (who, "move")][-1:]
    after = []
    for at in range(take + 1, len(events)):
        if events[at][0] == who and events[at][1] == "move":
            after.append(at)
        elif events[at] == (who, "left", thing):
            after.append(at)
            break
    after = after[: draw.choice([0, 1, 1, 2, 2])]
    kept = before + [take] + after
    if not before and not any(events[at][1] == "move" for at in after):
        return None
    others = [at for at in range(kept[0], kept[-1] + 2) if at < len(events) and events[at][0] != who and events[at][1] == "move"]
    if others and len(kept) < 4 and draw.random() < 0.5:
        kept.append(draw.choice(others))
    return [statements[at] for at in sorted(kept)]


def window(statements):
    length = draw.choice([4, 5, 6, 7, 8])
    if len(statements) < length:
        return None
    start = draw.randrange(len(statements) - length + 1)
    part = statements[start : start + length]
    return part if follow(part)[1] else None


def own(some, most):
    for statements, questions in some:
        for query, answer, length in questions:
            if length <= most:
                part = statements[:length]
                assert follow(part)[1][query.removeprefix("Where is the ").rstrip("? ")] == answer, (part, query, answer)
                yield part, {"query": query + " ", "target": answer}


def save(path, lines):
    lines = list(lines)
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    print(f"{path}: {len(lines)} samples, statements {dict(sorted(Counter(line['context'].count('. ') for line in lines).items()))}")


MOST = 16
draw = random.Random(0)
every = list(stories(sys.argv[1]))
train, held = every[:-200], every[-200:]
for path, part, times in ("carry.jsonl", carry, 8), ("window.jsonl", window, 8):
    parts = [part(statements) for statements, _ in train for _ in range(times)]
    parts = [part for part in parts if part]
    draw.shuffle(parts)
    save(path, (line(part, 5) for part in parts))
parts = []
for part, question in own(train, MOST):
    asked = line(part, 5)
    asked["questions"] = ([question] + [other for other in asked["questions"] if other["query"] != question["query"]])[:5]
    parts.append(asked)
draw.shuffle(parts)
save("start.jsonl", parts)


def alone(some):
    return [{"context": ". ".join(part) + ". "} | question for part, question in own(some, MOST)]


held = alone(held)
random.Random(0).shuffle(held)
save("held.jsonl", held[:60])
save("test.jsonl", alone(stories(sys.argv[2]))[::3])
