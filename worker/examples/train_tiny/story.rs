//! The text that the tiny model learns: small stories from a grammar. Every story has a hero, a place, a wish, a trouble, a
//! helper and a good end; the same seed tells the same story.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ANIMALS: [&str; 16] = [
    "fox", "bear", "rabbit", "mouse", "owl", "frog", "duck", "cat", "dog", "turtle", "squirrel", "hedgehog", "goat",
    "bird", "badger", "pony",
];
const GIRLS: [&str; 10] = [
    "Lily", "Mia", "Anna", "Rosa", "Ella", "Nora", "Ida", "Clara", "Emma", "Sue",
];
const BOYS: [&str; 10] = [
    "Tom", "Ben", "Max", "Leo", "Sam", "Finn", "Paul", "Jack", "Oscar", "Tim",
];
const NATURES: [&str; 10] = [
    "little", "brave", "shy", "clever", "kind", "hungry", "curious", "sleepy", "cheerful", "gentle",
];
const PLACES: [&str; 12] = [
    "in a small house by the river",
    "at the edge of the forest",
    "on a green hill",
    "near the old mill",
    "in a quiet village",
    "under a big oak tree",
    "beside a blue lake",
    "on a farm with a red barn",
    "in a warm cave",
    "behind the tall mountains",
    "in a garden full of flowers",
    "close to the sea",
];
const SPOTS: [&str; 10] = [
    "the river",
    "the forest",
    "the market",
    "the old bridge",
    "the meadow",
    "the hill",
    "the lake",
    "the garden",
    "the mill",
    "the beach",
];
const THINGS: [&str; 14] = [
    "red ball",
    "golden key",
    "warm scarf",
    "silver bell",
    "wooden boat",
    "yellow kite",
    "round stone",
    "blue cup",
    "small lamp",
    "paper star",
    "soft blanket",
    "sweet apple",
    "shiny coin",
    "green hat",
];
const FOODS: [&str; 8] = [
    "apples", "berries", "bread", "soup", "honey", "nuts", "pancakes", "cheese",
];
const TIMES: [&str; 8] = [
    "One day",
    "One morning",
    "One sunny day",
    "One cold morning",
    "One evening",
    "In the morning",
    "On a rainy day",
    "Early in spring",
];
const WEATHERS: [&str; 6] = [
    "The sun was shining.",
    "The wind was blowing.",
    "The sky was blue.",
    "It was raining.",
    "The air was cold.",
    "The birds were singing.",
];
const MORALS: [&str; 8] = [
    "A good friend is better than gold.",
    "It is good to help each other.",
    "Being kind makes everyone happy.",
    "Even the smallest can do great things.",
    "It is never too late to say sorry.",
    "Sharing makes things better.",
    "Being brave does not mean never being afraid.",
    "Those who wait will find a way.",
];

/// Someone in a story, with the words that stand for them.
struct Person {
    /// "Lily" or "the little fox"
    name: String,
    /// "a girl named Lily" or "a little fox"
    introduction: String,
    he: &'static str,
    him: &'static str,
    his: &'static str,
}

impl Person {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        match random.random_range(0..4) {
            0 => {
                let name = (*pick(random, &GIRLS)).to_owned();
                let introduction = format!("a {} girl named {name}", pick(random, &NATURES));
                Self {
                    name,
                    introduction,
                    he: "she",
                    him: "her",
                    his: "her",
                }
            }
            1 => {
                let name = (*pick(random, &BOYS)).to_owned();
                let introduction = format!("a {} boy named {name}", pick(random, &NATURES));
                Self {
                    name,
                    introduction,
                    he: "he",
                    him: "him",
                    his: "his",
                }
            }
            _ => {
                let (nature, animal) = (pick(random, &NATURES), pick(random, &ANIMALS));
                let (he, him, his) = *pick(random, &[("he", "him", "his"), ("she", "her", "her")]);
                Self {
                    name: format!("the {animal}"),
                    introduction: format!("a {nature} {animal}"),
                    he,
                    him,
                    his,
                }
            }
        }
    }

    /// The name at the start of a sentence.
    fn start(&self) -> String {
        capital(&self.name)
    }
}

/// The story of a seed: some hundred words in a few paragraphs of plain text.
pub fn tell(seed: u64) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let hero = Person::draw(&mut random);
    let friend = loop {
        let friend = Person::draw(&mut random);
        if friend.name != hero.name {
            break friend;
        }
    };
    let thing = *pick(&mut random, &THINGS);
    let spot = *pick(&mut random, &SPOTS);
    let mut story = vec![opening(&mut random, &hero, thing)];
    story.push(trouble(&mut random, &hero, thing, spot));
    story.push(meeting(&mut random, &hero, &friend, thing));
    story.push(help(&mut random, &hero, &friend, thing, spot));
    story.push(ending(&mut random, &hero, &friend, thing));
    story.join(" ")
}

fn opening(random: &mut ChaCha8Rng, hero: &Person, thing: &str) -> String {
    let Person {
        introduction, he, his, ..
    } = hero;
    let (place, name, start) = (pick(random, &PLACES), &hero.name, hero.start());
    let first = match random.random_range(0..4) {
        0 => format!("Once upon a time there was {introduction} who lived {place}."),
        1 => format!("Once upon a time, {introduction} lived {place}."),
        2 => format!("There once was {introduction}. {} lived {place}.", capital(he)),
        _ => format!("Long ago, {place}, there lived {introduction}."),
    };
    let food = pick(random, &FOODS);
    let second = match random.random_range(0..4) {
        0 => format!("{start} had a {thing} and loved it very much."),
        1 => format!("Every day {name} played with {his} {thing}."),
        2 => format!("{start} liked {food}, but most of all {he} liked {his} {thing}."),
        _ => format!("The best thing {he} had was a {thing}."),
    };
    format!("{first} {second}")
}

fn trouble(random: &mut ChaCha8Rng, hero: &Person, thing: &str, spot: &str) -> String {
    let Person { name, he, him, his, .. } = hero;
    let (time, weather) = (pick(random, &TIMES), pick(random, &WEATHERS));
    let walk = match random.random_range(0..3) {
        0 => format!("{time}, {name} went to {spot}. {weather}"),
        1 => format!("{time}, {name} took the {thing} and walked to {spot}. {weather}"),
        _ => format!("{weather} {time}, {name} wanted to see {spot}, so {he} went out."),
    };
    let loss = match random.random_range(0..4) {
        0 => format!("But on the way {he} lost the {thing}."),
        1 => format!("Suddenly the wind took the {thing} away from {him}."),
        2 => format!("When {he} looked into {his} bag, the {thing} was gone."),
        _ => format!("There {he} fell over a root, and the {thing} rolled away."),
    };
    let sad = match random.random_range(0..4) {
        0 => format!("{} looked everywhere, but {he} could not find it.", capital(he)),
        1 => format!("{} sat down and cried.", capital(he)),
        2 => format!("\"Oh no!\" said {name}. \"Where is my {thing}?\""),
        _ => format!("{} was very sad and did not know what to do.", capital(he)),
    };
    format!("{walk} {loss} {sad}")
}

fn meeting(random: &mut ChaCha8Rng, hero: &Person, friend: &Person, thing: &str) -> String {
    let Person { name, he, him, .. } = hero;
    let comes = match random.random_range(0..3) {
        0 => format!("Then {} came along.", friend.introduction),
        1 => format!("After a while {} saw {}.", name, friend.introduction),
        _ => format!("Just then {} walked by and stopped.", friend.introduction),
    };
    let asks = match random.random_range(0..3) {
        0 => format!("\"Why are you so sad?\" asked {}.", friend.name),
        1 => format!("\"What is wrong?\" {} asked {him}.", friend.name),
        _ => format!("\"Can I help you?\" asked {}.", friend.name),
    };
    let tells = match random.random_range(0..3) {
        0 => format!("\"I have lost my {thing},\" said {name}."),
        1 => format!("\"My {thing} is gone,\" {he} said."),
        _ => format!("{} told {} about the {thing}.", hero.start(), friend.him),
    };
    format!("{comes} {asks} {tells}")
}

fn help(random: &mut ChaCha8Rng, hero: &Person, friend: &Person, thing: &str, spot: &str) -> String {
    let promise = match random.random_range(0..3) {
        0 => format!("\"Do not worry,\" said {}. \"We will find it together.\"", friend.name),
        1 => format!("\"I will help you,\" said {}.", friend.name),
        _ => format!(
            "{} thought for a moment. \"Come with me,\" {} said.",
            friend.start(),
            friend.he
        ),
    };
    let search = match random.random_range(0..3) {
        0 => format!("They looked under the leaves and behind the stones near {spot}."),
        1 => format!("Together they went back to {spot} and looked again."),
        _ => format!("They walked and walked until they came to {spot}."),
    };
    let found = match random.random_range(0..4) {
        0 => format!("There, in the grass, lay the {thing}."),
        1 => format!("At last {} saw something in a tree. It was the {thing}!", friend.name),
        2 => format!(
            "\"Look!\" said {}. The {thing} was in the water, and {} pulled it out.",
            friend.name, friend.he
        ),
        _ => format!("{} found the {thing} behind an old wall.", hero.start()),
    };
    format!("{promise} {search} {found}")
}

fn ending(random: &mut ChaCha8Rng, hero: &Person, friend: &Person, thing: &str) -> String {
    let Person { name, he, his, .. } = hero;
    let food = pick(random, &FOODS);
    let thanks = match random.random_range(0..4) {
        0 => format!("{} was so happy that {he} danced.", hero.start()),
        1 => format!("\"Thank you!\" said {name}, and {he} smiled."),
        2 => format!("{} gave {} a big hug.", hero.start(), friend.name),
        _ => format!("{} held the {thing} close and laughed.", hero.start()),
    };
    let after = match random.random_range(0..4) {
        0 => format!("They went home and ate {food} together."),
        1 => format!("From that day on, {name} and {} were best friends.", friend.name),
        2 => format!("In the evening they sat by the fire and ate {food}."),
        _ => format!("{} never lost {his} {thing} again.", hero.start()),
    };
    if random.random_bool(0.5) {
        return format!("{thanks} {after} {}", pick(random, &MORALS));
    }
    format!("{thanks} {after}")
}

fn pick<'a, T>(random: &mut ChaCha8Rng, from: &'a [T]) -> &'a T {
    from.choose(random).expect("the lists are not empty")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
