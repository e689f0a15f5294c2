//! A join token in any text: it is refused, or it means what its own text says.
#![no_main]

use controller::pki::Token;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    for text in [input.to_owned(), format!("lsjoin1_{input}")] {
        if let Ok(token) = text.parse::<Token>() {
            assert_eq!(token.to_string().parse(), Ok(token));
        }
    }
});
