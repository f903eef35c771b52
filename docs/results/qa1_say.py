"""More JSON lines of bAbI's qa1 for docs/results/language.md, from those that qa1.py and qa1_order.py make: python3 qa1_say.py

both.jsonl       lines of told.jsonl with the repetition and without, of order.jsonl and of apart2.jsonl
moved-held.jsonl every fourth of the last 200 lines of moved.jsonl, which both.jsonl has not
say.jsonl        apart2.jsonl: where each person is, and what each did, which is the rest of the statement
moved-say.jsonl  moved.jsonl: where up to three people are, and what two of them did last
middle-say.jsonl middle.jsonl: where up to four people are, and what two of them did last
whole-say.jsonl  whole.jsonl: the same
long-say.jsonl   10,000 lines of each of the last two
"""

import json
import random
from collections import Counter


def load(path):
    return [json.loads(line) for line in open(path)]


def save(path, lines):
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    print(f"{path}: {len(lines)} samples")


def statements(line):
    parts = line["context"].strip().split(". ")
    return [part.strip().rstrip(".") for part in parts if part.strip()]


def where(name, did):
    return {"query": f"Where is {name}? ", "target": did.split()[-1]}


def what(name, did):
    return {"query": f"What did {name} do? ", "target": did + "."}


def asked(line, places):
    """Where so many people are, those first who are named most often, and what two did last."""
    last = dict(statement.split(" ", 1) for statement in statements(line))
    times = Counter(statement.split()[0] for statement in statements(line))
    people = sorted(last, key=lambda name: (-times[name], draw.random()))
    questions = [where(name, last[name]) for name in people[:places]]
    draw.shuffle(people)
    questions += [what(name, last[name]) for name in people[:2]]
    draw.shuffle(questions)
    return {"context": line["context"], "questions": questions}


EACH = 6000
draw = random.Random(5)
held = load("moved.jsonl")[-200:]
contexts = {line["context"] for line in held}
told = [line for line in load("told.jsonl")[:-200] if line["context"] not in contexts]
order = [line for line in load("order.jsonl") if line["context"] not in contexts]
order = [{"context": line.pop("context"), "questions": [line]} for line in order]
apart = load("apart2.jsonl")
for lines in (told, order, apart):
    draw.shuffle(lines)
both = order[:EACH] + told[:EACH] + apart[: EACH // 2]
both += [line | {"questions": line["questions"][:-1]} for line in told[EACH : EACH + EACH // 2]]
draw.shuffle(both)
save("both.jsonl", both)
save("moved-held.jsonl", held[::4])

draw = random.Random(7)
say = []
for line in load("apart2.jsonl"):
    each = [statement.split(" ", 1) for statement in statements(line)]
    questions = [question for name, did in each for question in (what(name, did), where(name, did))]
    draw.shuffle(questions)
    say.append({"context": line["context"], "questions": questions})
save("say.jsonl", say)

draw = random.Random(11)
save("moved-say.jsonl", [asked(line, 3) for line in load("moved.jsonl")])
middle = [asked(line, 4) for line in load("middle.jsonl")]
save("middle-say.jsonl", middle)
whole = [asked(line, 4) for line in load("whole.jsonl")]
save("whole-say.jsonl", whole)

draw = random.Random(13)
draw.shuffle(middle)
draw.shuffle(whole)
long = middle[:10_000] + whole[:10_000]
draw.shuffle(long)
save("long-say.jsonl", long)
