//! One connection that does as a line of text says, and says what came back as lines of text.
//!
//! An event is a frame in words: `head N STATUS`, `data N LENGTH`, `reset N CODE`, `goaway CODE`, `ping ack HEX`, `settings ack`,
//! `window N MORE`; `end` of the connection; `conn CODE` is a GOAWAY or the end; `total N LENGTH` counts data; ` end` may follow.
//!
//! Steps are parted by `;`:
//!
//! | step | what is done |
//! |---|---|
//! | `get N [PATH]`, `post N [PATH]` | a request on stream N; `post` leaves the stream open |
//! | `h N FLAGS FIELD...`, `c N FLAGS FIELD...` | HEADERS, CONTINUATION with fields written out; flags: `e`nd of stream, end of `h`eaders, `-` none |
//! | `f TYPE FLAGS N BYTES...` | any frame; flags in hexadecimal digits |
//! | `settings ID=VALUE...` | SETTINGS |
//! | `raw BYTES...` | bytes |
//! | `xN STEP` | a step that sends, N times |
//! | `bare` | first: no preface is sent |
//! | `shut` | our side of the connection is closed |
//! | `? EVENT \| EVENT` | waits for one of them |
//!
//! A field is `name=value` with `%xx`; `M O S A P` are those of a request. Bytes are hexadecimal digits, `'text`, `s:text`
//! (a string as HPACK has it), each with `*N` to repeat it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use crate::support::h2::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, Frames, GOAWAY, HEADERS, PING, PREFACE,
    PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::support::rig::Rig;

/// What must come, comes within this even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(12);
/// A stream that no case uses itself.
const LAST: u32 = 0x7fff_fff1;

const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

struct Script {
    frames: Frames,
    seen: Vec<String>,
    /// Bytes of data by stream.
    data: BTreeMap<u32, usize>,
}

/// Does `send` and waits for `expect`. After `conn` the connection must be closed; after anything else it must go on working, unless
/// `only` says that it need not; returns
/// whether it does.
pub(crate) async fn run(rig: &Rig, send: &str, expect: &str) -> Result<bool, String> {
    let mut script = Script {
        frames: Frames::over(rig.tls("a.test", "h2").await),
        seen: Vec::new(),
        data: BTreeMap::new(),
    };
    if !send.starts_with("bare") {
        script.send([PREFACE, &h2::frame(SETTINGS, 0, 0, &[])].concat()).await;
    }
    for step in send.split(';').map(str::trim).filter(|step| !step.is_empty()) {
        match step.strip_prefix("? ") {
            Some(events) => drop(script.wait(events).await?),
            None => script.step(step).await,
        }
    }
    let (expect, only) = expect.strip_suffix(" only").map_or((expect, false), |expect| (expect, true));
    let event = if expect == "alive" { String::new() } else { script.wait(expect).await? };
    if event.starts_with("goaway") {
        script.wait("end").await?;
    } else if event != "end" && !only {
        script
            .send(
                [h2::frame(PING, 0, 0, b"sentinel"), h2::request(LAST, END_STREAM, "GET", "/", &[])].concat(),
            )
            .await;
        script.wait("ping ack 73656e74696e656c").await?;
        script.wait(&format!("head {LAST} 200")).await?;
        return Ok(true);
    }
    Ok(false)
}

impl Script {
    async fn send(&mut self, bytes: Vec<u8>) {
        // A server that has heard enough need not hear the rest.
        self.frames.try_send(&bytes).await;
    }

    async fn step(&mut self, step: &str) {
        let mut words: Vec<&str> = step.split_whitespace().collect();
        let times = words[0].strip_prefix('x').map_or(1, |times| times.parse().unwrap());
        if words[0].starts_with('x') {
            words.remove(0);
        }
        let number = |n: usize| words[n].parse::<u32>().unwrap_or_else(|_| panic!("{step}: {}", words[n]));
        let path = || words.get(2).copied().unwrap_or("/");
        let bytes = match words[0] {
            "bare" => return,
            "shut" => return self.frames.shut().await,
            "get" => h2::request(number(1), END_STREAM, "GET", path(), &[]),
            "post" => h2::request(number(1), 0, "POST", path(), &[]),
            "h" => h2::frame(HEADERS, flags(words[2]), number(1), &block(&words[3..])),
            "c" => h2::frame(CONTINUATION, flags(words[2]), number(1), &block(&words[3..])),
            "f" => {
                let flags = u8::from_str_radix(words[2], 16).unwrap();
                h2::frame(kind(words[1]), flags, number(3), &bytes(&words[4..]))
            }
            "settings" => h2::frame(SETTINGS, 0, 0, &settings(&words[1..])),
            "raw" => bytes(&words[1..]),
            other => panic!("no step: {other}"),
        };
        self.send(bytes.repeat(times)).await;
    }

    /// Waits for one of `events`; a reset or an end that none of them is fails.
    async fn wait(&mut self, events: &str) -> Result<String, String> {
        loop {
            let mut total = String::new();
            let event = match timeout(PATIENCE, self.frames.any()).await {
                Err(_) => return Err(format!("waited for {events}; there was {:?}", self.seen)),
                Ok(None) => "end".to_owned(),
                Ok(Some(frame)) => {
                    if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                        self.send(h2::frame(SETTINGS, ACK, 0, &[])).await;
                    }
                    if frame.kind == DATA {
                        let sum = self.data.entry(frame.stream).or_default();
                        *sum += frame.payload.len();
                        total = format!("total {} {sum}", frame.stream);
                    }
                    text(&frame)
                }
            };
            self.seen.push(event.clone());
            let is = |wanted: &str| {
                let wanted = wanted.trim();
                match wanted.strip_prefix("conn ") {
                    Some(code) => event == "end" || event == format!("goaway {code}"),
                    None if wanted.starts_with("total") => wanted == total,
                    None => event
                        .strip_prefix(wanted)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')),
                }
            };
            if events.split('|').any(is) {
                return Ok(event);
            }
            // RFC 9113 section 8.1: a server that has answered may ask the client to stop sending.
            if event.starts_with("reset") && event.ends_with("NO_ERROR") {
                continue;
            }
            if ["goaway", "reset", "end"].iter().any(|bad| event.starts_with(bad)) {
                return Err(format!("wanted {events}; there was {:?}", self.seen));
            }
        }
    }
}

fn text(frame: &Frame) -> String {
    let stream = frame.stream;
    let number =
        |at: usize| frame.payload.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let code = |at| CODES.get(number(at) as usize).copied().unwrap_or("?");
    let end = if frame.flags & END_STREAM != 0 { " end" } else { "" };
    let ack = if frame.flags & ACK != 0 { " ack" } else { "" };
    match frame.kind {
        DATA => format!("data {stream} {}{end}", frame.payload.len()),
        HEADERS if frame.payload.is_empty() => format!("head {stream} nothing{end}"),
        HEADERS => format!("head {stream} {}{end}", h2::status(&frame.payload)),
        RST_STREAM => format!("reset {stream} {}", code(0)),
        SETTINGS => format!("settings{ack}"),
        PING => {
            let payload: String = frame.payload.iter().map(|b| format!("{b:02x}")).collect();
            format!("ping{ack} {payload}")
        }
        GOAWAY => format!("goaway {}", code(4)),
        WINDOW_UPDATE => format!("window {stream} {}", number(0)),
        other => format!("frame {other} {stream}"),
    }
}

fn kind(name: &str) -> u8 {
    match name {
        "DATA" => DATA,
        "HEADERS" => HEADERS,
        "PRIORITY" => PRIORITY,
        "RST" => RST_STREAM,
        "SETTINGS" => SETTINGS,
        "PUSH" => PUSH_PROMISE,
        "PING" => PING,
        "GOAWAY" => GOAWAY,
        "WINDOW" => WINDOW_UPDATE,
        "CONT" => CONTINUATION,
        other => u8::from_str_radix(other, 16).unwrap(),
    }
}

fn flags(letters: &str) -> u8 {
    let flag = |letter, flag| if letters.contains(letter) { flag } else { 0 };
    flag('e', END_STREAM) | flag('h', END_HEADERS)
}

fn block(fields: &[&str]) -> Vec<u8> {
    let mut block = Vec::new();
    for given in fields {
        let written = match *given {
            "M" => ":method=GET",
            "O" => ":method=POST",
            "S" => ":scheme=https",
            "A" => ":authority=a.test",
            "P" => ":path=/",
            other => other,
        };
        // The first `=` behind the name; a name may begin with a colon, and one may be empty.
        let (name, value) = written.split_once('=').unwrap_or((written, ""));
        h2::field(&mut block, &unescaped(name), &unescaped(value));
    }
    block
}

fn unescaped(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(text).collect()
}

fn settings(pairs: &[&str]) -> Vec<u8> {
    let mut payload = Vec::new();
    for pair in pairs {
        let (id, value) = pair.split_once('=').unwrap();
        payload.extend(id.parse::<u16>().unwrap().to_be_bytes());
        payload.extend(value.parse::<u32>().unwrap().to_be_bytes());
    }
    payload
}

fn bytes(words: &[&str]) -> Vec<u8> {
    let mut all = Vec::new();
    for word in words {
        let (what, times) = word.split_once('*').map_or((*word, 1), |(what, n)| (what, n.parse().unwrap()));
        let mut once = Vec::new();
        if let Some(text) = what.strip_prefix('\'') {
            once.extend(unescaped(text));
        } else if let Some(text) = what.strip_prefix("s:") {
            h2::string(&mut once, &unescaped(text));
        } else {
            assert!(what.len() % 2 == 0, "{what}");
            once.extend(
                (0..what.len()).step_by(2).map(|at| u8::from_str_radix(&what[at..at + 2], 16).unwrap()),
            );
        }
        all.extend(once.repeat(times));
    }
    all
}
