"""Short SQuAD from two files that share articles, for docs/results/language.md: python3 squad.py dev-v2.0.json xquad.en.json

train.json, valid.json   the answerable questions of both files; every eighth article is held out as a whole
medium.jsonl the sentences of train.json that hold an answer, if of at most 44 words: two of their questions (or one twice), and the repetition
brief.jsonl  those of them of at most sixteen words
mix.jsonl    medium.jsonl with two questions, or with one and, four times of ten, the repetition
long.jsonl   pairs of questions to sentences of 45 to 80 words, and as many of mix.jsonl
prompt.jsonl medium.jsonl with one question and the repetition
held.jsonl   eighty questions of valid.json and the sentences that hold their answers
"""

import json
import random
import re
import sys

articles = {}
for path in sys.argv[1:]:
    for article in json.load(open(path))["data"]:
        paragraphs = articles.setdefault(article["title"], {})
        for paragraph in article["paragraphs"]:
            text = paragraph["context"]
            asked = paragraphs.setdefault(text.strip(), {})
            for question in paragraph["qas"]:
                if question["answers"] and not question.get("is_impossible"):
                    cut = len(text) - len(text.lstrip())
                    answers = [dict(answer, answer_start=answer["answer_start"] - cut) for answer in question["answers"]]
                    asked.setdefault(question["question"].strip(), dict(question, answers=answers, is_impossible=False))


def save(path, titles):
    data = [
        {"title": title, "paragraphs": [{"context": text, "qas": list(asked.values())} for text, asked in articles[title].items() if asked]}
        for title in titles
    ]
    json.dump({"version": "1.1", "data": data}, open(path, "w"))
    count = sum(len(paragraph["qas"]) for article in data for paragraph in article["paragraphs"])
    print(f"{path}: {len(data)} articles, {count} questions")
    return data


def sentences(text):
    """Where the sentences begin: after a full stop of a word of three and more letters."""
    starts = [0] + [found.end() for found in re.finditer(r"(?<=\w\w\w[.!?])[\"”)]*\s+(?=[A-Z0-9\"“(])", text)]
    return list(zip(starts, starts[1:] + [len(text)]))


def short(data):
    for paragraph in (paragraph for article in data for paragraph in article["paragraphs"]):
        text = paragraph["context"]
        for question in paragraph["qas"]:
            answer = question["answers"][0]
            first = answer["answer_start"]
            last = first + len(answer["text"])
            part = [(start, end) for start, end in sentences(text) if start < last and end > first]
            context = text[part[0][0] : part[-1][1]].strip()
            yield context, question["question"].strip(), answer["text"].strip()


titles = sorted(articles)
valid = save("valid.json", titles[7::8])
train = save("train.json", [title for at, title in enumerate(titles) if at % 8 != 7])
lines = sorted(set(short(train)))
random.Random(0).shuffle(lines)


def write(path, lines):
    with open(path, "w") as file:
        file.writelines(json.dumps({"context": context + " ", "questions": asked}) + "\n" for context, asked in lines)
    print(f"{path}: {len(lines)} lines")


def question(line):
    return {"query": line[1] + " ", "target": line[2]}


def repetition(context):
    return {"query": "Text? ", "target": context}


def by_context(lines):
    found = {}
    for line in lines:
        found.setdefault(line[0], []).append(question(line))
    return found.items()


medium = [line for line in lines if len(line[0].split()) <= 44]
brief = [line for line in medium if len(line[0].split()) <= 16]
write("prompt.jsonl", [(line[0], [question(line), repetition(line[0])]) for line in medium])
for path, kept in [("brief.jsonl", brief), ("medium.jsonl", medium)]:
    pairs = []
    for context, asked in by_context(kept):
        for at in range(0, len(asked), 2):
            second = asked[at + 1] if at + 1 < len(asked) else asked[max(at - 1, 0)]
            pairs.append((context, [asked[at], second, repetition(context)]))
    random.Random(0).shuffle(pairs)
    write(path, pairs)

draw = random.Random(5)
pairs = []
for context, asked in by_context(medium):
    draw.shuffle(asked)
    for at in range(0, len(asked), 2):
        if at + 1 < len(asked):
            second = asked[at + 1]
        else:
            second = repetition(context) if draw.random() < 0.4 else asked[max(at - 1, 0)]
        pairs.append((context, [asked[at], second]))
draw.shuffle(pairs)
write("mix.jsonl", pairs)

draw = random.Random(6)
longer = []
for context, asked in by_context(line for line in lines if 44 < len(line[0].split()) <= 80):
    draw.shuffle(asked)
    for at in range(0, len(asked), 2):
        longer.append((context, [asked[at], asked[at + 1] if at + 1 < len(asked) else asked[max(at - 1, 0)]]))
draw.shuffle(pairs)
pairs = longer + [pair for pair in pairs if pair[1][1]["query"] != "Text? "][: len(longer)]
draw.shuffle(pairs)
write("long.jsonl", pairs)

lines = sorted(set(short(valid)))
random.Random(1).shuffle(lines)
with open("held.jsonl", "w") as file:
    file.writelines(json.dumps({"context": c + " ", "query": q + " ", "target": a}) + "\n" for c, q, a in lines[:80])
