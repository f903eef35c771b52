//! A simulated world that generates stories and questions of bAbI's tasks 1 to 5.

use rand::{Rng, RngExt};

const PEOPLE: [&str; 4] = ["Daniel", "John", "Mary", "Sandra"];
/// The people of task 5.
const GIVERS: [&str; 4] = ["Bill", "Fred", "Jeff", "Mary"];
const PLACES: [&str; 6] = [
    "bathroom", "bedroom", "garden", "hallway", "kitchen", "office",
];
const OBJECTS: [&str; 3] = ["apple", "football", "milk"];
const MOVES: [&str; 5] = [
    "moved to",
    "went to",
    "went back to",
    "journeyed to",
    "travelled to",
];
const TAKES: [&str; 4] = ["got", "grabbed", "picked up", "took"];
const DROPS: [&str; 4] = ["discarded", "dropped", "left", "put down"];
const GIVES: [&str; 3] = ["gave", "handed", "passed"];
/// In clockwise order: each is opposite to the one two positions later.
const SIDES: [&str; 4] = ["north", "east", "south", "west"];

/// No published question is about a fact that more statements follow than these.
const RECENT: usize = 4;

/// How often somebody tries to take, drop and give an object in a task, of 100 times; otherwise somebody moves. They then do so about as
/// often as in the published stories; task 3 has the numbers of task 2.
fn tried(task: usize) -> [usize; 3] {
    match task {
        2 | 3 => [25, 30, 0],
        5 => [21, 24, 45],
        _ => [0; 3],
    }
}

/// A story and questions about it.
pub(super) struct Story {
    pub(super) text: String,
    /// Questions with their answers.
    pub(super) questions: Vec<(String, &'static str)>,
}

/// The largest number of different questions that every story of a task can answer.
pub(super) fn most_questions(task: usize) -> usize {
    match task {
        1 | 4 => 4,
        2 | 3 => 3,
        _ => 5,
    }
}

/// Generates a story of a task from 1 to 5 with `questions` different questions. Its length is about that of the
/// original, but at most `statements` if it answers enough questions by then.
pub(super) fn story(task: usize, questions: usize, statements: usize, rng: &mut impl Rng) -> Story {
    if task == 4 {
        return directions(questions, rng);
    }
    // The average lengths of the original; in task 1 a question follows every second statement.
    let length = match task {
        1 => 2 * rng.random_range(1..=5),
        2 => rng.random_range(4..=26),
        3 => rng.random_range(12..=84),
        _ => rng.random_range(4..=32),
    };
    let length = length.min(statements);
    let mut world = World::new(task);
    let mut sentences: Vec<String> = Vec::new();
    // A story continues until it answers enough questions, one of them about a recent fact.
    let asked = loop {
        if sentences.len() >= length {
            let answerable = world.answerable();
            let enough = answerable.len() >= questions;
            let is_recent = |asked: &Asked| asked.since + RECENT >= world.last;
            let (recent, older): (Vec<_>, Vec<_>) = answerable.into_iter().partition(is_recent);
            if enough && !recent.is_empty() {
                let of_recent = questions.min(recent.len());
                let mut asked = sample(of_recent, &recent, rng);
                asked.extend(sample(questions - of_recent, &older, rng));
                break asked;
            }
        }
        sentences.push(world.step(rng));
    };
    Story {
        text: sentences.join(" "),
        questions: asked
            .into_iter()
            .map(|asked| (asked.question, asked.answer))
            .collect(),
    }
}

/// A question that a story answers.
#[derive(Clone)]
struct Asked {
    question: String,
    answer: &'static str,
    /// The last statement that the answer follows from.
    since: usize,
}

/// Task 4, as the original: two places on opposite sides of a third, and for each fact the question in its own words and the one from
/// the other side. The answer is always the place that the fact begins with; two of three facts end with the place in the middle.
fn directions(questions: usize, rng: &mut impl Rng) -> Story {
    let places = rand::seq::index::sample(rng, PLACES.len(), 3).into_vec();
    let middle = PLACES[places[2]];
    let first = rng.random_range(0..SIDES.len());
    let opposite = |side: usize| (side + 2) % SIDES.len();
    let facts = [(places[0], first), (places[1], opposite(first))].map(|(place, side)| {
        match rng.random_ratio(2, 3) {
            true => (PLACES[place], side, middle),
            false => (middle, opposite(side), PLACES[place]),
        }
    });
    let answerable = facts.map(|(what, side, of)| {
        [
            (format!("What is {} of the {of}?", SIDES[side]), what),
            (
                format!("What is the {of} {} of?", SIDES[opposite(side)]),
                what,
            ),
        ]
    });
    let facts = facts.map(|(what, side, of)| format!("The {what} is {} of the {of}.", SIDES[side]));
    Story {
        text: facts.join(" "),
        questions: sample(questions, answerable.as_flattened(), rng),
    }
}

/// The positions of people and objects that follow from the story so far.
struct World {
    task: usize,
    people: [&'static str; 4],
    /// The last statement.
    last: usize,
    /// The place of each person, if known.
    place: [Option<usize>; 4],
    /// The statement in which each person came to it.
    came: [usize; 4],
    /// The holder of each object, if there is one.
    holder: [Option<usize>; 3],
    /// The places of each object in order, and the statements that brought it there; the last is its current place.
    visited: [Vec<(usize, usize)>; 3],
    /// The last statement about each object or about who carries it.
    touched: [usize; 3],
    /// The last time an object was given: the giver, the object, the receiver; and the statement.
    given: Option<([usize; 3], usize)>,
}

impl World {
    fn new(task: usize) -> Self {
        Self {
            task,
            people: if task == 5 { GIVERS } else { PEOPLE },
            last: 0,
            place: [None; 4],
            came: [0; 4],
            holder: [None; 3],
            visited: Default::default(),
            touched: [0; 3],
            given: None,
        }
    }

    /// A random action, as a sentence: a person moves if no other action is possible.
    fn step(&mut self, rng: &mut impl Rng) -> String {
        self.last += 1;
        let [take, drop, give] = tried(self.task);
        let done = match rng.random_range(0..100) {
            at if at < take => self.take(rng),
            at if at < take + drop => self.drop(rng),
            at if at < take + drop + give => self.give(rng),
            _ => None,
        };
        done.unwrap_or_else(|| self.walk(rng))
    }

    fn walk(&mut self, rng: &mut impl Rng) -> String {
        let who = rng.random_range(0..self.people.len());
        let others = (0..PLACES.len()).filter(|to| self.place[who] != Some(*to));
        let others: Vec<usize> = others.collect();
        let to = pick(rng, &others);
        (self.place[who], self.came[who]) = (Some(to), self.last);
        for what in (0..OBJECTS.len()).filter(|what| self.holder[*what] == Some(who)) {
            self.visited[what].push((to, self.last));
            self.touched[what] = self.last;
        }
        let (name, verb) = (self.people[who], pick(rng, &MOVES));
        format!("{name} {verb} the {}.", PLACES[to])
    }

    /// A person whose place is known takes an object that is there or was not mentioned yet.
    fn take(&mut self, rng: &mut impl Rng) -> Option<String> {
        let (who, what) = self.pair(rng, |world, who, what| {
            let lies = world.visited[what].last().map(|(place, _)| *place);
            let within_reach = lies.is_none() || lies == world.place[who];
            world.holder[what].is_none() && world.place[who].is_some() && within_reach
        })?;
        (self.holder[what], self.touched[what]) = (Some(who), self.last);
        if self.visited[what].is_empty() {
            let place = self.place[who].map(|place| (place, self.last));
            self.visited[what].extend(place);
        }
        let there = if self.task == 3 { 50 } else { 100 };
        Some(self.sentence(rng, who, what, &TAKES, there))
    }

    fn drop(&mut self, rng: &mut impl Rng) -> Option<String> {
        let held = |world: &Self, who, what: usize| world.holder[what] == Some(who);
        let (who, what) = self.pair(rng, held)?;
        (self.holder[what], self.touched[what]) = (None, self.last);
        let there = if self.task == 3 { 50 } else { 20 };
        Some(self.sentence(rng, who, what, &DROPS, there))
    }

    /// A person gives an object to another person who is at the same place or was not mentioned yet.
    fn give(&mut self, rng: &mut impl Rng) -> Option<String> {
        let (to, what) = self.pair(rng, |world, to, what| {
            world.holder[what].is_some_and(|from| {
                let there = world.place[to].is_none() || world.place[to] == world.place[from];
                from != to && there
            })
        })?;
        let from = self.holder[what]?;
        (self.place[to], self.came[to]) = (self.place[from], self.last);
        (self.holder[what], self.touched[what]) = (Some(to), self.last);
        self.given = Some(([from, what, to], self.last));
        let (name, verb) = (self.people[from], pick(rng, &GIVES));
        let (what, to) = (OBJECTS[what], self.people[to]);
        Some(format!("{name} {verb} the {what} to {to}."))
    }

    /// A random pair of a person and an object for which `fits` is true.
    fn pair(
        &self,
        rng: &mut impl Rng,
        fits: impl Fn(&Self, usize, usize) -> bool,
    ) -> Option<(usize, usize)> {
        let people = 0..self.people.len();
        let pairs = people.flat_map(|who| (0..OBJECTS.len()).map(move |what| (who, what)));
        let pairs: Vec<_> = pairs
            .filter(|(who, what)| fits(self, *who, *what))
            .collect();
        (!pairs.is_empty()).then(|| pick(rng, &pairs))
    }

    /// With "there" at the end `there` of 100 times.
    fn sentence(
        &self,
        rng: &mut impl Rng,
        who: usize,
        what: usize,
        verbs: &[&str],
        there: u32,
    ) -> String {
        let (name, verb, what) = (self.people[who], pick(rng, verbs), OBJECTS[what]);
        let is_there = rng.random_ratio(there, 100);
        let there = if is_there { " there" } else { "" };
        format!("{name} {verb} the {what}{there}.")
    }

    /// The questions that the story answers.
    fn answerable(&self) -> Vec<Asked> {
        let mut asked = Vec::new();
        let mut ask = |question, answer, since| {
            asked.push(Asked {
                question,
                answer,
                since,
            });
        };
        match self.task {
            1 => {
                for (who, name) in self.people.iter().enumerate() {
                    if let Some(at) = self.place[who] {
                        ask(format!("Where is {name}?"), PLACES[at], self.came[who]);
                    }
                }
            }
            2 => {
                for (what, name) in OBJECTS.iter().enumerate() {
                    if let Some((at, _)) = self.visited[what].last() {
                        let question = format!("Where is the {name}?");
                        ask(question, PLACES[*at], self.touched[what]);
                    }
                }
            }
            3 => {
                for (what, visited) in OBJECTS.iter().zip(&self.visited) {
                    for (place, name) in PLACES.iter().enumerate() {
                        let last = visited.iter().rposition(|(at, _)| *at == place);
                        let Some(last) = last.filter(|last| *last > 0) else {
                            continue;
                        };
                        let question = format!("Where was the {what} before the {name}?");
                        ask(question, PLACES[visited[last - 1].0], visited[last].1);
                    }
                }
            }
            _ => {
                let Some(([from, what, to], since)) = self.given else {
                    return asked;
                };
                let (from, what, to) = (self.people[from], OBJECTS[what], self.people[to]);
                ask(format!("Who gave the {what}?"), from, since);
                ask(format!("Who gave the {what} to {to}?"), from, since);
                ask(format!("What did {from} give to {to}?"), what, since);
                ask(format!("Who did {from} give the {what} to?"), to, since);
                ask(format!("Who received the {what}?"), to, since);
            }
        }
        asked
    }
}

/// `count` different random elements.
fn sample<T: Clone>(count: usize, from: &[T], rng: &mut impl Rng) -> Vec<T> {
    let drawn = rand::seq::index::sample(rng, from.len(), count);
    drawn.into_iter().map(|at| from[at].clone()).collect()
}

/// A random element of a slice that is not empty.
fn pick<T: Copy>(rng: &mut impl Rng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}
