//! RFC 7541: what is decoded, and what cannot be.

use super::Case;

const BAD: &str = "conn COMPRESSION_ERROR";

pub(super) const CASES: &[Case] = &[
    // Section 2.3 and 6.1: indices.
    ("hpack-6.1/static", "the static table", "f HEADERS 5 1 82 87 84 41 s:a.test", "head 1 200"),
    ("hpack-6.1/zero", "index 0", "f HEADERS 5 1 82 87 84 41 s:a.test 80", BAD),
    ("hpack-2.3.3/beyond", "an index beyond the tables", "f HEADERS 5 1 82 87 84 41 s:a.test bf", BAD),
    (
        "hpack-2.3.3/empty-table",
        "the first dynamic index of an empty table",
        "f HEADERS 5 1 82 87 84 be",
        BAD,
    ),
    ("hpack-2.3.3/far", "an index far beyond", "f HEADERS 5 1 82 87 84 ff80ff01", BAD),
    (
        "hpack-2.3.3/name-beyond",
        "the name of an index beyond the tables",
        "f HEADERS 5 1 82 87 84 7f00 s:y",
        BAD,
    ),
    (
        "hpack-2.3.3/name-beyond-plain",
        "also of a literal that is not indexed",
        "f HEADERS 5 1 82 87 84 0f70 s:y",
        BAD,
    ),
    // Section 2.2: the table lives as long as the connection.
    (
        "hpack-2.2/kept",
        "an entry can be used by a later request",
        "f HEADERS 5 1 82 87 84 41 s:a.test; ? head 1 200; f HEADERS 5 3 82 87 84 be",
        "head 3 200",
    ),
    (
        "hpack-2.2/kept-malformed",
        "also one that a malformed request made",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:connection s:close; ? reset 1 PROTOCOL_ERROR; f HEADERS 5 3 82 87 84 be",
        "head 3 200",
    ),
    (
        "hpack-2.2/kept-trailers",
        "also one that trailers made",
        "post 1; f HEADERS 5 1 40 s:x-a s:b; ? head 1 200; f HEADERS 5 3 82 87 84 41 s:a.test bf",
        "head 3 200",
    ),
    (
        "hpack-2.2/duplicates",
        "entries may be there twice",
        "f HEADERS 5 1 82 87 84 41 s:a.test 40 s:x s:y 40 s:x s:y be bf",
        "head 1 200",
    ),
    // Section 4.2 and 6.3: table sizes.
    (
        "hpack-4.2/update",
        "an update at the beginning of a block",
        "f HEADERS 5 1 20 82 87 84 41 s:a.test",
        "head 1 200",
    ),
    ("hpack-4.2/updates", "two of them", "f HEADERS 5 1 20 3fe11f 82 87 84 41 s:a.test", "head 1 200"),
    ("hpack-4.2/end", "an update at the end of a block", "f HEADERS 5 1 82 87 84 41 s:a.test 20", BAD),
    ("hpack-4.2/within", "an update between fields", "f HEADERS 5 1 82 87 20 84 41 s:a.test", BAD),
    (
        "hpack-6.3/limit",
        "a size as large as allowed",
        "f HEADERS 5 1 3fe11f 82 87 84 41 s:a.test",
        "head 1 200",
    ),
    (
        "hpack-6.3/over",
        "a size that is larger than allowed",
        "f HEADERS 5 1 3fe21f 82 87 84 41 s:a.test",
        BAD,
    ),
    ("hpack-6.3/far-over", "a size of a gigabyte", "f HEADERS 5 1 3fe1ffffff03 82 87 84 41 s:a.test", BAD),
    (
        "hpack-4.3/evicted",
        "an update evicts",
        "f HEADERS 5 1 82 87 84 41 s:a.test; ? head 1 200; f HEADERS 5 3 20 82 87 84 be",
        BAD,
    ),
    (
        "hpack-4.4/large",
        "an entry larger than the table empties it, and is no error",
        "f HEADERS 5 1 20 82 87 84 41 s:a.test 40 s:x s:y",
        "head 1 200",
    ),
    ("hpack-4.4/emptied", "and is not in it", "f HEADERS 5 1 20 82 87 84 41 s:a.test be", BAD),
    (
        "hpack-4.4/pushed-out",
        "a full table drops the oldest entry",
        "f HEADERS 5 1 3f31 82 87 84 41 s:a.test 40 s:x-a s:1234567890 40 s:x-b s:1234567890; ? head 1 200; f HEADERS 5 3 82 87 84 41 s:a.test bf",
        BAD,
    ),
    // Section 5.1: integers.
    (
        "hpack-5.1/five",
        "an integer in several bytes",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 7f 01 61*128",
        "head 1 200",
    ),
    ("hpack-5.1/overflow", "an integer beyond 32 bits", "f HEADERS 5 1 82 87 84 ffffffffffff7f", BAD),
    ("hpack-5.1/overflow-64", "an integer beyond 64 bits", "f HEADERS 5 1 82 87 84 ff ff*10 7f", BAD),
    ("hpack-5.1/endless", "an integer that does not end", "f HEADERS 5 1 82 87 84 ff 80*100", BAD),
    ("hpack-5.1/zeros", "an integer made long with zeros", "f HEADERS 5 1 82 87 84 ff 80*12 00", BAD),
    ("hpack-5.1/length", "a length beyond 32 bits", "f HEADERS 5 1 82 87 84 00 7fffffffffff7f 61", BAD),
    ("hpack-5.1/truncated", "a block that ends within an integer", "f HEADERS 5 1 82 87 84 ff80", BAD),
    // Section 5.2: strings.
    (
        "hpack-5.2/huffman",
        "a string in Huffman's code",
        "f HEADERS 5 1 82 87 84 41 84 1ae92a13",
        "head 1 200",
    ),
    (
        "hpack-5.2/huffman-example",
        "the example of appendix C.4.1",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 8cf1e3c2e5f23a6ba0ab90f4ff",
        "head 1 200",
    ),
    (
        "hpack-5.2/padding-long",
        "padding of eight bits",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 86294a5294a5ff",
        BAD,
    ),
    (
        "hpack-5.2/padding-longer",
        "padding of more",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 87294a5294a5ffff",
        BAD,
    ),
    (
        "hpack-5.2/padding-zeros",
        "padding that is not of ones",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 8100",
        BAD,
    ),
    (
        "hpack-5.2/eos",
        "the end-of-string symbol",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 84ffffffff",
        BAD,
    ),
    (
        "hpack-5.2/eos-within",
        "the end-of-string symbol between others",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 8a294a5294a5fffffffca5",
        BAD,
    ),
    ("hpack-5.2/huffman-name", "a bad name", "f HEADERS 5 1 82 87 84 41 s:a.test 00 84ffffffff s:x", BAD),
    ("hpack-5.2/empty", "an empty value", "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 00", "head 1 200"),
    (
        "hpack-5.2/empty-huffman",
        "an empty value in Huffman's code",
        "f HEADERS 5 1 82 87 84 41 s:a.test 00 s:x 80",
        "head 1 200",
    ),
    ("hpack-5.2/name-truncated", "a block that ends within a name", "f HEADERS 5 1 82 87 84 00 05 'ab", BAD),
    (
        "hpack-5.2/value-truncated",
        "a block that ends within a value",
        "f HEADERS 5 1 82 87 84 00 s:x 05 'ab",
        BAD,
    ),
    ("hpack-5.2/value-missing", "a block that ends before a value", "f HEADERS 5 1 82 87 84 00 s:x", BAD),
    ("hpack-5.2/length-missing", "a block that ends before a name", "f HEADERS 5 1 82 87 84 00", BAD),
    (
        "hpack-5.2/continued-truncated",
        "a block that ends within a value after CONTINUATION",
        "f HEADERS 1 1 82 87 84 00; f CONT 4 1 s:x 05 'ab",
        BAD,
    ),
    // Section 6.2: literals.
    (
        "hpack-6.2.1/name-index",
        "an indexed literal with a name of the table",
        "f HEADERS 5 1 82 87 84 41 s:a.test 50 s:gzip",
        "head 1 200",
    ),
    (
        "hpack-6.2.2/name-index",
        "a plain literal with a name of the table",
        "f HEADERS 5 1 82 87 84 01 s:a.test",
        "head 1 200",
    ),
    (
        "hpack-6.2.3/never",
        "a literal that is never indexed",
        "f HEADERS 5 1 82 87 84 41 s:a.test 10 s:x-secret s:y 1f08 s:abc",
        "head 1 200",
    ),
];
