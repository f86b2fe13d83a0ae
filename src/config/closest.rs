//! The word that was probably meant.

/// The closest of the known words, if one is close enough that it was probably meant.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
    let best = known.into_iter().map(|candidate| (distance(candidate), candidate)).min_by_key(|(distance, _)| *distance)?;
    // A third of the letters may be wrong; more is another word.
    let allowed = (lower.chars().count().max(best.1.chars().count()) / 3).max(1);
    (best.0 <= allowed).then_some(best.1)
}

/// `a`, `a or b`, `a, b or c`.
pub fn listed(words: &[&str]) -> String {
    match words {
        [] => "(none)".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_word_and_another_word_does_not() {
        let known = ["password", "tables", "url", "kind"];
        assert_eq!(closest("passwrod", known), Some("password"));
        assert_eq!(closest("Table", known), Some("tables"));
        assert_eq!(closest("ulr", known), Some("url"));
        assert_eq!(closest("connection", known), None);
        assert_eq!(closest("x", []), None);
    }

    #[test]
    fn words_are_listed_with_or() {
        assert_eq!(listed(&["a", "b", "c"]), "a, b or c");
        assert_eq!(listed(&["a"]), "a");
    }
}
