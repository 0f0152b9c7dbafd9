//! A wallet's keys out of 24 words, which a person can write down.
//!
//! The words are BIP-39's: English, without a further passphrase. The keys are SLIP-10's for
//! Ed25519, where every step is hardened, so that no key tells anything of another:
//!
//! | path | key |
//! |---|---|
//! | `m/44'/7630704'/0'/0'` | the funding key: its account holds the money |
//! | `m/44'/7630704'/0'/1'/N'` | session key `N`: it signs vouchers and session requests |
//!
//! 7630704 is `top` in ASCII; SLIP-44 gives it to no other coin.

use std::fmt;

use bip39::{Language, Mnemonic};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use topnet_channel::SecretKey;
use zeroize::Zeroizing;

const COIN: u32 = 7_630_704;
const ENTROPY_BYTES: usize = 32;
/// Child keys of this and higher numbers are hardened; SLIP-10 has no others for Ed25519.
const HARDENED: u32 = 1 << 31;

/// Why there is no phrase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhraseError {
    /// Words are missing or too many.
    #[error("a phrase has 12, 15, 18, 21 or 24 words, ours have 24; these are {0}")]
    WordCount(usize),
    /// No such word.
    #[error("word {number}, `{word}`, is none of BIP-39's English words{hint}")]
    UnknownWord {
        /// Its place, from 1.
        number: usize,
        /// What stands there.
        word: String,
        /// Words that begin alike.
        hint: String,
    },
    /// All are words, but not of one phrase.
    #[error(
        "every word exists, but the checksum is wrong: a word stands for another, or two have \
         changed places; compare it with what you wrote down"
    )]
    Checksum,
    /// The system has no randomness.
    #[error("the system has no randomness; try again")]
    Randomness,
}

/// Which of the phrase's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyPath {
    /// Signs what moves money on chain.
    Funding,
    /// Signs a channel's vouchers, proves the payer's end of a payment link and starts sessions.
    /// Whoever has it can spend what its channels hold, on their payees, and nothing else.
    Session(u16),
}

impl KeyPath {
    /// The numbers of the path, before they are hardened.
    fn steps(self) -> Vec<u32> {
        let mut steps = vec![44, COIN, 0];
        match self {
            Self::Funding => steps.push(0),
            Self::Session(index) => steps.extend([1, u32::from(index)]),
        }
        steps
    }
}

impl fmt::Display for KeyPath {
    /// As SLIP-10 writes it: `m/44'/7630704'/0'/0'`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("m")?;
        self.steps()
            .iter()
            .try_for_each(|step| write!(f, "/{step}'"))
    }
}

/// The words. They are never shown by `Debug`, and are wiped when dropped.
pub struct Phrase(Mnemonic);

impl Phrase {
    /// A new phrase of 24 words.
    pub fn generate() -> Result<Self, PhraseError> {
        let mut entropy = Zeroizing::new([0; ENTROPY_BYTES]);
        SystemRandom::new()
            .fill(entropy.as_mut())
            .map_err(|_| PhraseError::Randomness)?;
        Mnemonic::from_entropy(entropy.as_ref())
            .map(Self)
            .map_err(|_| PhraseError::Randomness)
    }

    /// Reads what a person wrote: words in any case, with any space between them, numbered or
    /// not.
    pub fn parse(text: &str) -> Result<Self, PhraseError> {
        let mut words = Zeroizing::new(String::with_capacity(text.len() + 1));
        for word in text.split_whitespace().filter(|word| !is_number(word)) {
            words.extend(word.chars().flat_map(char::to_lowercase));
            words.push(' ');
        }
        Mnemonic::parse_in_normalized(Language::English, words.trim_end())
            .map(Self)
            .map_err(|error| match error {
                bip39::Error::BadWordCount(count) => PhraseError::WordCount(count),
                bip39::Error::UnknownWord(index) => unknown_word(&words, index),
                _ => PhraseError::Checksum,
            })
    }

    /// The words in their order.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        self.0.words()
    }

    /// The words in one line.
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(self.0.word_count() * 9));
        for word in self.words() {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(word);
        }
        text
    }

    /// The key at `path`; the same one whenever it is asked for.
    pub fn key(&self, path: KeyPath) -> SecretKey {
        let seed = Zeroizing::new(self.0.to_seed_normalized(""));
        let node = path
            .steps()
            .into_iter()
            .fold(Node::master(seed.as_ref()), |node, step| node.child(step));
        SecretKey::from_seed(*node.key).expect("any 32 bytes make an Ed25519 key (RFC 8032)")
    }
}

impl fmt::Debug for Phrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Phrase(…)")
    }
}

/// `7`, `7.` or `7)`: how people number the words.
fn is_number(word: &str) -> bool {
    let digits = word.trim_end_matches(['.', ')', ':']);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn unknown_word(words: &str, index: usize) -> PhraseError {
    let word = words.split(' ').nth(index).unwrap_or_default();
    let alike = (2..=4).rev().find_map(|letters| {
        let prefix: String = word.chars().take(letters).collect();
        let found = Language::English.words_by_prefix(&prefix);
        (!found.is_empty()).then(|| found[..found.len().min(3)].join(", "))
    });
    PhraseError::UnknownWord {
        number: index + 1,
        word: word.chars().take(32).collect(),
        hint: alike
            .map(|words| format!("; did you mean {words}?"))
            .unwrap_or_default(),
    }
}

/// An extended private key of SLIP-10.
struct Node {
    key: Zeroizing<[u8; 32]>,
    chain_code: Zeroizing<[u8; 32]>,
}

impl Node {
    fn master(seed: &[u8]) -> Self {
        Self::from_hmac(b"ed25519 seed", seed)
    }

    /// The hardened child of this number.
    fn child(&self, number: u32) -> Self {
        debug_assert!(number < HARDENED);
        let mut data = Zeroizing::new([0; 1 + 32 + 4]);
        data[1..33].copy_from_slice(self.key.as_ref());
        data[33..].copy_from_slice(&(HARDENED | number).to_be_bytes());
        Self::from_hmac(self.chain_code.as_ref(), data.as_ref())
    }

    fn from_hmac(key: &[u8], data: &[u8]) -> Self {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, key), data);
        let mut node = Self {
            key: Zeroizing::default(),
            chain_code: Zeroizing::default(),
        };
        node.key.copy_from_slice(&tag.as_ref()[..32]);
        node.chain_code.copy_from_slice(&tag.as_ref()[32..]);
        node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BIP-39's own vector of 24 words: entropy of 32 zero bytes.
    const ZEROS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
        abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon \
        abandon abandon abandon art";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    /// SLIP-10's test vectors 1 and 2 for ed25519: number, chain code, private, public key.
    #[test]
    fn slip_10s_own_vectors() {
        let vectors = [
            (
                "000102030405060708090a0b0c0d0e0f",
                [
                    (
                        None,
                        "90046a93de5380a72b5e45010748567d5ea02bbf6522f979e05c0d8d8ca9fffb",
                        "2b4be7f19ee27bbf30c667b642d5f4aa69fd169872f8fc3059c08ebae2eb19e7",
                        "a4b2856bfec510abab89753fac1ac0e1112364e7d250545963f135f2a33188ed",
                    ),
                    (
                        Some(0),
                        "8b59aa11380b624e81507a27fedda59fea6d0b779a778918a2fd3590e16e9c69",
                        "68e0fe46dfb67e368c75379acec591dad19df3cde26e63b93a8e704f1dade7a3",
                        "8c8a13df77a28f3445213a0f432fde644acaa215fc72dcdf300d5efaa85d350c",
                    ),
                    (
                        Some(1),
                        "a320425f77d1b5c2505a6b1b27382b37368ee640e3557c315416801243552f14",
                        "b1d0bad404bf35da785a64ca1ac54b2617211d2777696fbffaf208f746ae84f2",
                        "1932a5270f335bed617d5b935c80aedb1a35bd9fc1e31acafd5372c30f5c1187",
                    ),
                    (
                        Some(2),
                        "2e69929e00b5ab250f49c3fb1c12f252de4fed2c1db88387094a0f8c4c9ccd6c",
                        "92a5b23c0b8a99e37d07df3fb9966917f5d06e02ddbd909c7e184371463e9fc9",
                        "ae98736566d30ed0e9d2f4486a64bc95740d89c7db33f52121f8ea8f76ff0fc1",
                    ),
                    (
                        Some(2),
                        "8f6d87f93d750e0efccda017d662a1b31a266e4a6f5993b15f5c1f07f74dd5cc",
                        "30d1dc7e5fc04c31219ab25a27ae00b50f6fd66622f6e9c913253d6511d1e662",
                        "8abae2d66361c879b900d204ad2cc4984fa2aa344dd7ddc46007329ac76c429c",
                    ),
                    (
                        Some(1_000_000_000),
                        "68789923a0cac2cd5a29172a475fe9e0fb14cd6adb5ad98a3fa70333e7afa230",
                        "8f94d394a8e8fd6b1bc2f3f49f5c47e385281d5c17e65324b0f62483e37e8793",
                        "3c24da049451555d51a7014a37337aa4e12d41e485abccfa46b47dfb2af54b7a",
                    ),
                ],
            ),
            (
                "fffcf9f6f3f0edeae7e4e1dedbd8d5d2cfccc9c6c3c0bdbab7b4b1aeaba8a5a29f9c999693908d8a\
                 8784817e7b7875726f6c696663605d5a5754514e4b484542",
                [
                    (
                        None,
                        "ef70a74db9c3a5af931b5fe73ed8e1a53464133654fd55e7a66f8570b8e33c3b",
                        "171cb88b1b3c1db25add599712e36245d75bc65a1a5c9e18d76f9f2b1eab4012",
                        "8fe9693f8fa62a4305a140b9764c5ee01e455963744fe18204b4fb948249308a",
                    ),
                    (
                        Some(0),
                        "0b78a3226f915c082bf118f83618a618ab6dec793752624cbeb622acb562862d",
                        "1559eb2bbec5790b0c65d8693e4d0875b1747f4970ae8b650486ed7470845635",
                        "86fab68dcb57aa196c77c5f264f215a112c22a912c10d123b0d03c3c28ef1037",
                    ),
                    (
                        Some(2_147_483_647),
                        "138f0b2551bcafeca6ff2aa88ba8ed0ed8de070841f0c4ef0165df8181eaad7f",
                        "ea4f5bfe8694d8bb74b7b59404632fd5968b774ed545e810de9c32a4fb4192f4",
                        "5ba3b9ac6e90e83effcd25ac4e58a1365a9e35a3d3ae5eb07b9e4d90bcf7506d",
                    ),
                    (
                        Some(1),
                        "73bd9fff1cfbde33a1b846c27085f711c0fe2d66fd32e139d3ebc28e5a4a6b90",
                        "3757c7577170179c7868353ada796c839135b3d30554bbb74a4b1e4a5a58505c",
                        "2e66aa57069c86cc18249aecf5cb5a9cebbfd6fadeab056254763874a9352b45",
                    ),
                    (
                        Some(2_147_483_646),
                        "0902fe8a29f9140480a00ef244bd183e8a13288e4412d8389d140aac1794825a",
                        "5837736c89570de861ebc173b1086da4f505d4adb387c6a1b1342d5e4ac9ec72",
                        "e33c0f7d81d843c572275f287498e8d408654fdf0d1e065b84e2e6f157aab09b",
                    ),
                    (
                        Some(2),
                        "5d70af781f3a37b829f0d060924d5e960bdc02e85423494afc0b1a41bbe196d4",
                        "551d333177df541ad876a60ea71f00447931c0a9da16f227c11ea080d7391b8d",
                        "47150c75db263559a70d5778bf36abbab30fb061ad69f69ece61a72b0cfa4fc0",
                    ),
                ],
            ),
        ];
        for (seed, chain) in vectors {
            let mut node = Node::master(&unhex(seed));
            for (number, chain_code, private, public) in chain {
                if let Some(number) = number {
                    node = node.child(number);
                }
                assert_eq!(hex(node.chain_code.as_ref()), chain_code);
                assert_eq!(hex(node.key.as_ref()), private);
                let key = SecretKey::from_seed(*node.key).unwrap();
                assert_eq!(hex(key.public_key().as_bytes()), public);
            }
        }
    }

    /// People have these words on paper: what they lead to never changes.
    #[test]
    fn golden_keys_of_a_phrase() {
        let phrase = Phrase::parse(ZEROS).unwrap();
        // As BIP-39 derives it from the words, and computed by another implementation.
        assert_eq!(
            hex(&phrase.0.to_seed_normalized("")[..16]),
            "408b285c123836004f4b8842c89324c1"
        );
        let cases = [
            (
                KeyPath::Funding,
                "m/44'/7630704'/0'/0'",
                "top1yvt34m4dpkcply0xnrjr6kj5ag9z38mzqc5c8fqcx3vzdxqckenqmv7ctm",
            ),
            (
                KeyPath::Session(0),
                "m/44'/7630704'/0'/1'/0'",
                "top1qcrduzc28l8ktp07zc639c2v434vu7zwggj49n58wgctq6xzfr2ql4ssqx",
            ),
            (
                KeyPath::Session(9),
                "m/44'/7630704'/0'/1'/9'",
                "top1v4js2pe6fst5y6z9yek7yk4vul4lj97na5uy4vvwp0jgwutljpzsnlum3v",
            ),
        ];
        for (path, text, address) in cases {
            assert_eq!(path.to_string(), text);
            assert_eq!(phrase.key(path).address().to_string(), address, "{path}");
        }
    }

    #[test]
    fn a_new_phrase_has_24_words_and_reads_back() {
        let phrase = Phrase::generate().unwrap();
        assert_eq!(phrase.words().count(), 24);
        let again = Phrase::parse(&phrase.text()).unwrap();
        let key = |phrase: &Phrase| phrase.key(KeyPath::Funding).public_key();
        assert_eq!(key(&again), key(&phrase));
        assert_ne!(key(&Phrase::generate().unwrap()), key(&phrase));
        assert_eq!(format!("{phrase:?}"), "Phrase(…)");
    }

    #[test]
    fn words_are_read_as_people_write_them() {
        let numbered: String = ZEROS
            .split_whitespace()
            .enumerate()
            .map(|(index, word)| format!("{}. {}\n", index + 1, word.to_uppercase()))
            .collect();
        assert_eq!(
            *Phrase::parse(&numbered).unwrap().text(),
            *Phrase::parse(ZEROS).unwrap().text()
        );
    }

    #[test]
    fn what_is_wrong_with_a_phrase_is_named() {
        let check = |text: &str, expected: &str| {
            let error = Phrase::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "these are 0");
        check("abandon art", "these are 2");
        check(
            &ZEROS
                .replacen("abandon", "abandom", 3)
                .replacen("abandom", "abandon", 2),
            "word 3, `abandom`, is none of BIP-39's English words; did you mean abandon?",
        );
        check(
            &ZEROS.replace("art", "xyz"),
            "word 24, `xyz`, is none of BIP-39's English words",
        );
        check(&ZEROS.replace("art", "able"), "the checksum is wrong");
    }
}
