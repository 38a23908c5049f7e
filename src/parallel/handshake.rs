//! The handshake by which a rank and rank 0 prove to each other that they know their job's secret, which does not
//! travel.
//!
//! ```text
//! rank to rank 0    hello: what each side says first ([`Hello`])
//! rank 0 to rank    hello
//! rank to rank 0    HMAC-SHA256(secret, "longreel rank:  " and both hellos)
//! rank 0 to rank    HMAC-SHA256(secret, "longreel rank 0:" and both hellos), or 32 zeros if the other's proof is wrong
//! ```
//!
//! A hello has 32 random bytes, so that nothing that was recorded counts again. The words before the hellos differ by
//! side, so that no proof can be sent back to where it came from. Rank and world size are in the hellos, so that nobody
//! on the way can change them. Frames are authenticated with keys of the same exchange ([`Transcript::seals`]), so that
//! nobody on the way can add any.

use std::io;

use super::secret::{Key, random};

/// What each side says first. The last byte is the protocol's version.
const MAGIC: [u8; 12] = *b"longreel\0\0\0\x03";
/// Bytes of a hello.
pub const HELLO: usize = MAGIC.len() + 8 + 32;
/// Bytes of a proof.
pub const PROOF: usize = 32;
/// In the place of rank 0's proof: it refuses the other's.
pub const REFUSED: [u8; PROOF] = [0; PROOF];

/// Who a process says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The rank that the sender says it is.
    pub rank: usize,
    /// How many ranks it knows of.
    pub size: usize,
    nonce: [u8; 32],
}

impl Hello {
    /// With new random bytes.
    ///
    /// # Errors
    /// The system has none.
    pub fn new(rank: usize, size: usize) -> io::Result<Self> {
        Ok(Self { rank, size, nonce: random()? })
    }

    /// The magic, rank and size as little-endian u32, and the random bytes.
    pub fn to_bytes(&self) -> [u8; HELLO] {
        let mut bytes = [0; HELLO];
        bytes[..12].copy_from_slice(&MAGIC);
        bytes[12..16].copy_from_slice(&(self.rank as u32).to_le_bytes());
        bytes[16..20].copy_from_slice(&(self.size as u32).to_le_bytes());
        bytes[20..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Whether a hello may begin so: who says something else need not be heard to the end.
    pub fn may_begin(bytes: &[u8]) -> bool {
        MAGIC.iter().zip(bytes).all(|(wanted, byte)| wanted == byte)
    }

    /// Of bytes that anybody may have sent; none if no longreel of this version did.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<12>()?;
        let (rank, rest) = rest.split_first_chunk::<4>()?;
        let (size, nonce) = rest.split_first_chunk::<4>()?;
        let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) as usize;
        (*magic == MAGIC).then_some(Self { rank: word(rank), size: word(size), nonce: nonce.try_into().ok()? })
    }
}

/// A side of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A rank other than 0.
    Rank,
    /// Rank 0, which the others come to.
    Rank0,
}

/// What both sides have said, under the key of the job's secret.
pub struct Transcript {
    key: Key,
    hellos: [[u8; HELLO]; 2],
}

impl Transcript {
    /// Of a job with this key, and what the two have said.
    pub fn new(key: &Key, rank: &Hello, rank_0: &Hello) -> Self {
        Self { key: key.clone(), hellos: [rank.to_bytes(), rank_0.to_bytes()] }
    }

    /// Words of one length, then all that was said.
    fn tag(&self, words: &[u8; 16]) -> [u8; PROOF] {
        self.key.tag(&[words, &self.hellos[0], &self.hellos[1]])
    }

    fn words(side: Side) -> &'static [u8; 16] {
        match side {
            Side::Rank => b"longreel rank:  ",
            Side::Rank0 => b"longreel rank 0:",
        }
    }

    /// The proof that a side knows the secret.
    pub fn proof(&self, side: Side) -> [u8; PROOF] {
        self.tag(Self::words(side))
    }

    /// Whether what came from `side` is its proof, in a time that does not depend on where it differs.
    pub fn proves(&self, side: Side, proof: &[u8]) -> bool {
        self.key.fits(&[Self::words(side), &self.hellos[0], &self.hellos[1]], proof)
    }

    /// What authenticates the frames that a side sends, and those that it receives.
    pub fn seals(&self, side: Side) -> [Seal; 2] {
        let seal = |words| Seal { key: Key::new(&self.tag(words)), frames: 0 };
        let (rank, rank_0) = (seal(b"longreel frames "), seal(b"longreel frames0"));
        if side == Side::Rank { [rank, rank_0] } else { [rank_0, rank] }
    }
}

/// Numbers the frames of one direction and authenticates them: none can be changed, added, repeated, left out or come
/// in another order.
pub struct Seal {
    key: Key,
    frames: u64,
}

impl Seal {
    /// The tag of the next frame.
    pub fn next(&mut self, head: &[u8], body: &[u8]) -> [u8; PROOF] {
        let number = self.count();
        self.key.tag(&[&number, head, body])
    }

    /// Whether `tag` is that of the next frame.
    pub fn fits(&mut self, head: &[u8], body: &[u8], tag: &[u8]) -> bool {
        let number = self.count();
        self.key.fits(&[&number, head, body], tag)
    }

    fn count(&mut self) -> [u8; 8] {
        self.frames += 1;
        self.frames.to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_read_as_it_was_written_and_nothing_else_is_one() {
        let hello = Hello::new(3, 70_000).unwrap();
        let bytes = hello.to_bytes();
        assert_eq!(Hello::parse(&bytes), Some(hello.clone()));
        assert_ne!(Hello::new(3, 70_000).unwrap(), hello, "the random bytes are new each time");
        for end in 0..HELLO {
            assert_eq!(Hello::parse(&bytes[..end]), None);
            assert!(Hello::may_begin(&bytes[..end]));
        }
        assert_eq!(Hello::parse(&[&bytes[..], b"x"].concat()), None);
        for i in 0..12 {
            let mut other = bytes;
            other[i] ^= 1;
            assert_eq!(Hello::parse(&other), None);
            assert!(!Hello::may_begin(&other[..=i]));
        }
    }

    #[test]
    fn a_proof_counts_for_one_exchange_one_side_and_one_secret() {
        let [a, b] = [Hello::new(1, 2).unwrap(), Hello::new(0, 2).unwrap()];
        let key = Key::new(&[7; 32]);
        let exchange = Transcript::new(&key, &a, &b);
        let proof = exchange.proof(Side::Rank);
        assert!(exchange.proves(Side::Rank, &proof));
        assert!(!exchange.proves(Side::Rank0, &proof), "sent back to where it came from");
        assert!(!Transcript::new(&key, &a, &Hello::new(0, 2).unwrap()).proves(Side::Rank, &proof), "replayed");
        assert!(
            !Transcript::new(&key, &Hello { rank: 0, ..a.clone() }, &b).proves(Side::Rank, &proof),
            "of another rank"
        );
        assert!(!Transcript::new(&Key::new(&[8; 32]), &a, &b).proves(Side::Rank, &proof), "of another secret");
        assert!(!exchange.proves(Side::Rank0, &REFUSED) && !exchange.proves(Side::Rank, &[]));
    }

    #[test]
    fn frames_count_once_in_their_order_and_direction() {
        let [a, b] = [Hello::new(1, 2).unwrap(), Hello::new(0, 2).unwrap()];
        let exchange = Transcript::new(&Key::new(&[7; 32]), &a, &b);
        let [mut sends, mut other] = exchange.seals(Side::Rank);
        let receives = || {
            let [_, seal] = exchange.seals(Side::Rank0);
            seal
        };
        let [first, second] = [sends.next(b"h", b"one"), sends.next(b"h", b"two")];
        assert_ne!(first, other.next(b"h", b"one"), "another direction has another key");
        let mut seal = receives();
        assert!(seal.fits(b"h", b"one", &first) && seal.fits(b"h", b"two", &second));
        assert!(!receives().fits(b"h", b"two", &second), "the first was left out");
        let mut seal = receives();
        assert!(seal.fits(b"h", b"one", &first) && !seal.fits(b"h", b"one", &first), "repeated");
        assert!(!receives().fits(b"h", b"onf", &first) && !receives().fits(b"i", b"one", &first), "changed");
    }
}
