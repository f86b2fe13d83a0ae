//! What a statement names beside the table that it changes, and whether it calls anything that could change another one.

use std::collections::BTreeSet;

use super::words::{Token, Words};

/// Names of a statement, among them those of everything that it reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// What may be a database: the default one, and whatever stands before a dot
    pub databases: BTreeSet<String>,
    /// What may be a table or a view
    pub names: BTreeSet<String>,
}

/// A statement with more names is not looked into.
const MAX_NAMES: usize = 512;

/// Words before a bracket that no function can have as its name without quotes: reserved on every version.
const RESERVED: &str = "\
    ALL AND AS BETWEEN BIGINT BINARY BY CASE CHAR DECIMAL DISTINCT DIV ELSE EXISTS FROM HAVING IF IN INDEX INSERT INT \
    INTERVAL INTO JOIN KEY LEFT LIKE LIMIT MOD NOT ON OR PARTITION REGEXP REPEAT REPLACE RIGHT RLIKE SELECT SET THEN UNION \
    UNIQUE USING VALUES VARCHAR WHEN WHERE XOR";

/// Functions that every version has. A stored function of the same name is called with its database, or with a blank before the bracket.
const BUILT_IN: &str = "\
    ABS ACOS ADDDATE ADDTIME AES_DECRYPT AES_ENCRYPT ASCII ASIN ATAN ATAN2 AVG BIN BIT_AND BIT_COUNT BIT_LENGTH BIT_OR \
    BIT_XOR CAST CEIL CEILING CHARACTER_LENGTH CHARSET CHAR_LENGTH COALESCE COERCIBILITY COLLATION COMPRESS CONCAT CONCAT_WS \
    CONNECTION_ID CONV CONVERT CONVERT_TZ COS COT COUNT CRC32 CURDATE CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP \
    CURRENT_USER CURTIME DATABASE DATE DATEDIFF DATE_ADD DATE_FORMAT DATE_SUB DAY DAYNAME DAYOFMONTH DAYOFWEEK DAYOFYEAR \
    DEGREES ELT EXP EXPORT_SET EXTRACT FIELD FIND_IN_SET FLOOR FORMAT FOUND_ROWS FROM_BASE64 FROM_DAYS FROM_UNIXTIME \
    GREATEST GROUP_CONCAT HEX HOUR IFNULL INET6_ATON INET6_NTOA INET_ATON INET_NTOA INSTR ISNULL LAST_DAY LAST_INSERT_ID \
    LCASE LEAST LENGTH LN LOCALTIME LOCALTIMESTAMP LOCATE LOG LOG10 LOG2 LOWER LPAD LTRIM MAKEDATE MAKETIME MAKE_SET MAX MD5 \
    MICROSECOND MID MIN MINUTE MONTH MONTHNAME NOW NULLIF OCT OCTET_LENGTH ORD PERIOD_ADD PERIOD_DIFF PI POSITION POW POWER \
    QUARTER QUOTE RADIANS RAND REVERSE ROUND ROW_COUNT RPAD RTRIM SCHEMA SECOND SEC_TO_TIME SHA SHA1 SHA2 SIGN SIN SPACE \
    SQRT STD STDDEV STRCMP STR_TO_DATE SUBDATE SUBSTR SUBSTRING SUBSTRING_INDEX SUBTIME SUM SYSDATE TAN TIME TIMEDIFF \
    TIMESTAMP TIMESTAMPADD TIMESTAMPDIFF TIME_FORMAT TIME_TO_SEC TO_BASE64 TO_DAYS TO_SECONDS TRIM TRUNCATE UCASE UNHEX \
    UNIX_TIMESTAMP UPPER USER UTC_DATE UTC_TIME UTC_TIMESTAMP UUID UUID_SHORT VARIANCE VERSION WEEK WEEKDAY WEEKOFYEAR YEAR \
    YEARWEEK";

/// What stands behind the changed table's name; none if it may call a stored function or cannot be told.
pub fn reads(mut words: Words<'_>) -> Option<Reads> {
    let mut found = Reads::default();
    if !words.database().is_empty() {
        found.databases.insert(String::from_utf8(words.database().to_vec()).ok()?);
    }
    let (mut before, mut last): (Option<Token<'_>>, Option<Token<'_>>) = (None, None);
    let mut touches = false;
    while let Some(token) = words.token() {
        match (&token, &last) {
            (Token::Sign(b'('), Some(Token::Quoted(_))) => return None,
            // Behind a dot every word is a name.
            (Token::Sign(b'('), Some(Token::Word(word))) if before == Some(Token::Sign(b'.')) || !is_no_call(word, touches) => {
                return None;
            }
            (Token::Sign(b'.'), Some(Token::Word(word))) if !is_number(word) => {
                found.databases.insert(std::str::from_utf8(word).ok()?.to_owned());
            }
            (Token::Sign(b'.'), Some(Token::Quoted(name))) => {
                found.databases.insert(String::from_utf8(name.clone()).ok()?);
            }
            (Token::Word(word), _) if !is_number(word) => {
                found.names.insert(std::str::from_utf8(word).ok()?.to_owned());
            }
            (Token::Quoted(name), _) => {
                found.names.insert(String::from_utf8(name.clone()).ok()?);
            }
            _ => {}
        }
        if found.names.len() > MAX_NAMES {
            return None;
        }
        touches = words.rest.first() == Some(&b'(');
        before = last.replace(token);
    }
    Some(found)
}

/// Whether a bracket behind the word belongs to the language or to a function that changes nothing.
fn is_no_call(word: &[u8], touches: bool) -> bool {
    let Ok(word) = std::str::from_utf8(word) else { return false };
    let is_in = |list: &str| list.split_ascii_whitespace().any(|known| known.eq_ignore_ascii_case(word));
    is_in(RESERVED) || touches && is_in(BUILT_IN)
}

fn is_number(word: &[u8]) -> bool {
    word.iter().all(u8::is_ascii_digit)
}
