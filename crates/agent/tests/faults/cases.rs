//! The faults: what a receiver does over each protocol, and what the agent is to
//! say of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use prost::Message;
use tonic::{Code, Status};

use crate::receiver::{Answer, Fault, Then};
use crate::trust::Authority;

/// A fault as it is over a protocol.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) fault: Fault,
    /// What the log says, or may say as well on a machine that is busy.
    pub(crate) says: &'static str,
    /// Whether the emitter tries again before minutes are over.
    pub(crate) recovers: bool,
    /// Whether it is spoken to over TLS.
    pub(crate) tls: bool,
    /// By which name, without TLS.
    pub(crate) host: &'static str,
}

impl Case {
    /// Whether it takes a short patience to see it several times.
    pub(crate) fn is_silent(&self) -> bool {
        self.says.contains("no answer within")
    }
}

/// Faults, and whom to believe where they are spoken to over TLS.
pub(crate) struct Cases {
    pub(crate) all: Vec<Case>,
    pub(crate) authority: Authority,
}

impl Cases {
    fn new() -> Self {
        Cases { all: Vec::new(), authority: Authority::new() }
    }

    fn grpc(self, name: &'static str, fault: Fault, says: &'static str) -> Self {
        self.add(name, "grpc", fault, says)
    }

    fn http(self, name: &'static str, fault: Fault, says: &'static str) -> Self {
        self.add(name, "http", fault, says)
    }

    fn both(self, name: &'static str, fault: &Fault, says: &'static str) -> Self {
        self.grpc(name, fault.clone(), says).http(name, fault.clone(), says)
    }

    fn add(
        mut self,
        name: &'static str,
        protocol: &'static str,
        fault: Fault,
        says: &'static str,
    ) -> Self {
        self.all.push(Case {
            name,
            protocol,
            fault,
            says,
            recovers: true,
            tls: false,
            host: "127.0.0.1",
        });
        self
    }

    /// Of all that were added: they are asked for patience that nobody has.
    fn for_ever(mut self) -> Self {
        for case in &mut self.all {
            case.recovers &= !case.name.starts_with("for-ever");
        }
        self
    }

    fn over_tls(mut self) -> Self {
        for case in &mut self.all {
            case.tls = !case.name.starts_with("plain");
        }
        self
    }
}

fn speaks(bytes: impl Into<Vec<u8>>, then: Then) -> Fault {
    Fault::Speaks(Arc::new(bytes.into()), then)
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// How a server of HTTP/2 begins.
fn settings() -> Vec<u8> {
    [frame(4, 0, 0, &[]), frame(4, 1, 0, &[])].concat()
}

pub(crate) fn silent() -> Cases {
    let hangs = speaks("", Then::Hangs);
    Cases::new()
        .both("refuses", &Fault::Refuses, "Connection refused")
        .both("swallows", &Fault::Swallows, "do packets get there|no answer within")
        .both("hangs", &hangs, "no answer within")
        .grpc("begins", speaks(settings(), Then::Hangs), "no answer within")
        .http("begins", speaks("HTTP/1.1 200 OK\r\n", Then::Hangs), "no answer within")
        .grpc("drips", speaks(settings(), Then::Drips), "no answer within")
        .http("drips", speaks("HTTP/1.1 200 OK\r\nx-very: slow", Then::Drips), "no answer within")
}

/// A refusal over gRPC, and in how many seconds to try again.
fn refuses(code: Code, seconds: Option<i64>) -> Fault {
    let details = seconds.map(|seconds| retry_info(code, seconds)).unwrap_or_default();
    let status = Status::with_details(code, "not now", details.into());
    let head = status.into_http::<()>().into_parts().0.headers;
    let mut answer = Answer::http(200);
    for (name, value) in &head {
        let name: &'static str = name.to_string().leak();
        answer = answer.header(name, value.to_str().unwrap());
    }
    Fault::Answers(answer)
}

/// `google.rpc.Status` with a `google.rpc.RetryInfo`, as they are on the wire.
fn retry_info(code: Code, seconds: i64) -> Vec<u8> {
    let within =
        |tag: u8, bytes: &[u8]| [&[tag, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let mut duration = vec![0x08];
    prost::encoding::encode_varint(seconds.cast_unsigned(), &mut duration);
    let kind = within(0x0a, b"type.googleapis.com/google.rpc.RetryInfo");
    let any = [kind, within(0x12, &within(0x0a, &duration))].concat();
    [vec![0x08, code as u8], within(0x1a, &any)].concat()
}

/// An answer of HTTP that asks to come again.
fn again(status: u16, retry_after: &str) -> Fault {
    Fault::Answers(Answer::http(status).header("retry-after", retry_after))
}

pub(crate) fn impatient() -> Cases {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    let spans = "99999999999999999999999999";
    Cases::new()
        .grpc("hint", refuses(Code::ResourceExhausted, Some(1)), "not now")
        .http("hint", again(429, "1"), "HTTP 429 Too Many Requests")
        .grpc("unavailable", refuses(Code::Unavailable, Some(1)), "Unavailable: not now")
        .http("unavailable", again(503, &date), "HTTP 503 Service Unavailable")
        .grpc("no-hint", refuses(Code::ResourceExhausted, None), "ResourceExhausted")
        .http("no-hint", Fault::Answers(Answer::http(503)), "HTTP 503")
        .grpc("negative", refuses(Code::Unavailable, Some(-5)), "Unavailable")
        .http("negative", again(503, "-5"), "HTTP 503")
        .http("past", again(429, "Sun, 06 Nov 1994 08:49:37 GMT"), "HTTP 429")
        .http("nonsense", again(429, "soon"), "HTTP 429")
        .grpc("for-ever", refuses(Code::Unavailable, Some(i64::MAX)), "Unavailable")
        .http("for-ever", again(503, spans), "HTTP 503")
        .http("for-ever-by-date", again(503, "Fri, 31 Dec 9999 23:59:59 GMT"), "HTTP 503")
        .grpc("stranger", refuses(Code::Unauthenticated, None), "Unauthenticated")
        .http("stranger", Fault::Answers(Answer::http(401)), "HTTP 401")
        .grpc("elsewhere", elsewhere(), "HTTP 307, which is no answer of a gRPC server")
        .http("elsewhere", elsewhere(), "it sends us to http://elsewhere.test/; set endpoint")
        .for_ever()
}

fn elsewhere() -> Fault {
    Fault::Answers(Answer::http(307).header("location", "http://elsewhere.test/"))
}

/// Receivers that take all but so many of a request's events, as they say.
pub(crate) fn partial() -> Cases {
    let answer = |rejected: i64| {
        let partial = ExportLogsPartialSuccess {
            rejected_log_records: rejected,
            error_message: "too old".to_owned(),
        };
        ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec()
    };
    let mut cases = Cases::new();
    for (name, rejected) in [("all", i64::MAX), ("none", 0), ("one", 1), ("negative", i64::MIN)] {
        let body = answer(rejected);
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let framed = [&[0][..], &length, &body].concat();
        let grpc = Answer { takes: true, ..Answer::grpc(&framed, &content()) };
        let http = Answer { takes: true, body, ..Answer::http(200) };
        // An agent has no place for more.
        cases = if name == "one" || name == "all" {
            cases.grpc(name, Fault::Answers(grpc), "")
        } else {
            cases
        };
        if name != "one" {
            let http = http.header("content-type", PROTOBUF);
            cases = cases.http(name, Fault::Answers(http), "");
        }
    }
    cases
}

/// Receivers that nobody finds whose resolver does not answer.
pub(crate) fn named() -> Cases {
    let says = "dns error: no answer from its resolver within|no answer within";
    let mut cases = Cases::new().both("named", &speaks("", Then::Resets), says);
    for case in &mut cases.all {
        case.host = "receiver.test";
    }
    cases
}

/// Receivers that reset whatever there is.
pub(crate) fn resetting() -> Cases {
    Cases::new().both("resets", &speaks("", Then::Resets), "")
}

const PROTOBUF: &str = "application/x-protobuf";

/// How an answer in gRPC ends that is content.
fn content() -> [(&'static str, String); 1] {
    [("grpc-status", "0".to_owned())]
}

pub(crate) fn broken() -> Cases {
    let mut halfway = Answer::grpc(&[0, 0, 0, 0, 9, 1, 2], &[]);
    halfway.breaks_off = true;
    let mut chunk = Answer::http(200).header("content-type", PROTOBUF);
    (chunk.body, chunk.breaks_off) = (vec![0x0a, 9], true);
    let goaway = [settings(), frame(7, 0, 0, &[0; 8])].concat();
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\nhalf";
    let claims = Answer::grpc(&[0, 0, 0, 0, 9, 1, 2], &content());
    let truncated = Answer { body: vec![0x0a, 9, 1], ..chunk.clone() };
    let truncated = Answer { breaks_off: false, ..truncated };
    Cases::new()
        .both("reset", &speaks("", Then::Resets), "nobody has answered there yet")
        .both("closed", &speaks("", Then::Closes), "nobody has answered there yet")
        .grpc("head", speaks(settings(), Then::Resets), "http://127.0.0.1:")
        .http("head", speaks("HTTP/1.1 200 OK\r\ncontent-", Then::Resets), "http://127.0.0.1:")
        .grpc("body", Fault::Answers(halfway), "the answer broke off")
        .http("body", Fault::Answers(chunk), "http://127.0.0.1:")
        .grpc("end", Fault::Answers(Answer::grpc(&[0; 5], &[])), "it ended without a status")
        .http("end", speaks(half, Then::Closes), "http://127.0.0.1:")
        .grpc("claims", Fault::Answers(claims), "its message is shorter than it says")
        .http("claims", Fault::Answers(truncated), "an answer that can't be read")
        .grpc("goaway", speaks(goaway, Then::Closes), "http://127.0.0.1:")
}

pub(crate) fn garbage() -> Cases {
    let mut state = 88_172_645_463_325_252_u64;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    let noise: Vec<u8> = noise.take(4_096).collect();
    let old = "HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nhello";
    let mut page = Answer::http(200).header("content-type", "text/html");
    page.body = b"<html>log in first".to_vec();
    let page = Fault::Answers(page);
    let mut large = Answer::grpc(&[0, 5, 245, 225, 0], &content());
    large.body.resize(1 << 20, 0);
    let endless = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 100000000\r\n\r\n";
    let endless = [endless.as_bytes(), &[0; 65_536]].concat();
    let headers =
        [&b"HTTP/1.1 200 OK\r\n"[..], &b"x-a: bbbbbbbb\r\n\r\n"[..14].repeat(4_682)].concat();
    let more = frame(9, 0, 1, &[0; 16_375]).repeat(4);
    let frames = [settings(), frame(1, 0, 1, &[0; 100]), more].concat();
    let mut squeezed = Answer::http(200).header("content-type", PROTOBUF);
    squeezed.body = b"no gzip".to_vec();
    let squeezed = squeezed.header("content-encoding", "gzip");
    let mut json = Answer::http(200).header("content-type", "application/json");
    json.body = b"{".to_vec();
    let named = [("grpc-status", "abc".to_owned())];
    let unread = "an answer that can't be read";
    Cases::new()
        .grpc("noise", speaks(noise.clone(), Then::Closes), "http://127.0.0.1:")
        .http("noise", speaks(noise, Then::Closes), "no HTTP/1.1 is spoken there")
        .grpc("old", speaks(old, Then::Closes), "no HTTP/2 is spoken there: is it the port of")
        .http("old", speaks(old, Then::Closes), "none of OTLP's but text/plain")
        .http("other", speaks(settings(), Then::Closes), "is it the port of gRPC")
        .grpc("page", page.clone(), "HTTP 200, which is no answer of a gRPC server")
        .http("page", page, "none of OTLP's but text/html; is endpoint right?")
        .grpc("giant", Fault::Answers(large), "the answer broke off")
        .http("giant", speaks(endless, Then::Floods), "length limit exceeded")
        .grpc("headers", speaks(frames, Then::Floods), "http://127.0.0.1:")
        .http("headers", speaks(headers, Then::Floods), "http://127.0.0.1:")
        .grpc("squeezed", Fault::Answers(Answer::grpc(&[1, 0, 0, 0, 0], &content())), unread)
        .http("squeezed", Fault::Answers(squeezed), unread)
        .grpc("words", Fault::Answers(Answer::grpc(&[0; 5], &named)), unread)
        .http("words", Fault::Answers(json), unread)
}

pub(crate) fn untrusted() -> Cases {
    let cases = Cases::new();
    let ours = |name, expired, asks| Fault::Tls(cases.authority.server(name, expired, asks));
    let elsewhere = ours("elsewhere.test", false, false);
    let expired = ours("localhost", true, false);
    let asks = ours("localhost", false, true);
    let well = ours("localhost", false, false);
    let stranger = Fault::Tls(Authority::new().server("localhost", false, false));
    let plain = speaks("HTTP/1.1 400 Bad Request\r\n\r\n", Then::Closes);
    cases
        .both("elsewhere", &elsewhere, "set endpoint to a name that its certificate is for")
        .both("expired", &expired, "its certificate is to be renewed, or a clock is wrong")
        .both("stranger", &stranger, "set tls.ca to the authority that signed its certificate")
        // Said by the receiver, if what it says still comes through.
        .grpc("asks", asks.clone(), "a client's certificate")
        .http("asks", asks, "a client's certificate")
        .both("answers-plain", &plain, "no TLS is spoken there")
        .both("hangs", &speaks("", Then::Hangs), "no answer within")
        .grpc("plain", well.clone(), "of TLS")
        .http("plain", well, "no HTTP/1.1 is spoken there")
        .over_tls()
}
