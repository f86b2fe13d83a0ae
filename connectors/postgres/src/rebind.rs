//! What the server shows about a checkpoint that is to be given up or moved here.

use headwater_connector::{Error, Identity, Intent, IntentMode, Position, Result, Survey};

use crate::{
    catalog::Catalog,
    codes,
    config::Settings,
    connection::Connection,
    error::protocol,
    position::{Lsn, Place},
    publication,
    slot::{self, END_OF_LOG, Slot},
};

/// What there is at the server, beside the checkpoint.
struct Look<'a> {
    settings: &'a Settings,
    slot: Option<&'a Slot>,
    published: bool,
    place: Option<Place>,
    /// Of the server's log.
    end: Lsn,
    /// Whether positions of the checkpoint are of this system and database.
    same: Result<()>,
    /// Whether the server's history leads through the position.
    history: Result<()>,
    /// Whether the server can say where inside a transaction it goes on.
    divisible: Result<()>,
}

/// See [`headwater_connector::SourceConnector::survey`]. `found` is the identity of the server that was reached.
pub async fn survey(
    (session, catalog): (&mut Connection, &mut Catalog),
    settings: &Settings,
    found: Identity,
    stored: Option<&Identity>,
    position: Option<&Position>,
) -> Result<Survey> {
    let place = position.map(Place::from_position).transpose()?;
    let slot = slot::find(catalog, settings).await?;
    let published = publication::find(catalog, settings).await?.is_some();
    let end: Lsn = catalog
        .value(&format!("SELECT {END_OF_LOG}"))
        .await?
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| protocol("the server's log position cannot be read"))?;
    let mut facts = vec![("server", describe(&found))];
    facts.extend(stored.filter(|stored| *stored != &found).map(|stored| ("was", describe(stored))));
    let same = stored.map_or(Ok(()), |stored| require_same_system(stored, &found));
    let mut history = Ok(());
    if let (Some(stored), Some(place), Ok(())) = (stored, place, &same) {
        let (left, now) = (slot::timeline(stored), slot::timeline(&found));
        match slot::require_history(session, catalog, settings, (left, now), place).await {
            Ok(()) if left == now => {}
            Ok(()) => facts.push(("history", format!("left timeline {left} behind the position"))),
            Err(error) if error.code().id == codes::DIVERGED.id => {
                facts.push(("history", error.what()));
                history = Err(error);
            }
            // A question that could not be asked is no answer.
            Err(error) => return Err(error),
        }
    }
    facts.push(("server's log", format!("ends at {end}")));
    facts.push(("slot", state(settings, slot.as_ref())));
    facts.push(("publication", format!("{:?} {}", settings.publication, if published { "exists" } else { "does not exist" })));
    let divisible = stored.map_or(Ok(()), |stored| require_same_messages(stored, &found));
    let look = Look { settings, slot: slot.as_ref(), published, place, end, same, history, divisible };
    let anew = anew(&look);
    let rebind = rebind(look).map(|()| found);
    Ok(Survey { facts, anew, rebind })
}

/// Numbers of one system say nothing in another, also after `pg_upgrade`, which begins a new log and new slots; nor do those of one
/// database in another. A database may have been renamed.
fn require_same_system(stored: &Identity, found: &Identity) -> Result<()> {
    let oid = |identity: &Identity| identity.get("database").and_then(|both| both.split('/').next()).map(str::to_owned);
    let part = match (stored.get("system") == found.get("system"), oid(stored) == oid(found)) {
        (true, true) => return Ok(()),
        (false, _) => "system",
        (true, false) => "database",
    };
    Err(slot::other_source(part, stored.get(part).unwrap_or_default(), found.get(part).unwrap_or_default())
        .hint("Bring back the one that the position is of, or begin anew: run `headwater reset` without --rebind."))
}

/// Ordinals inside a transaction count what the publication lets through.
fn require_same_messages(stored: &Identity, found: &Identity) -> Result<()> {
    for part in ["publication", slot::PUBLICATION_ID, "options"] {
        let (stored, found) = (stored.get(part).unwrap_or_default(), found.get(part).unwrap_or_default());
        if stored != found {
            return Err(slot::other_source(part, stored, found).hint(
                "Let the transaction that is partly published end with the former publication and `messages`, or begin anew without --rebind.",
            ));
        }
    }
    Ok(())
}

fn describe(identity: &Identity) -> String {
    let part = |name: &str| identity.get(name).unwrap_or("?").to_owned();
    format!("system {}, timeline {}, database {}", part("system"), part("timeline"), part("database"))
}

fn state(settings: &Settings, slot: Option<&Slot>) -> String {
    let name = &settings.slot;
    match slot {
        None => format!("{name:?} does not exist"),
        Some(slot) => match slot.usable(settings) {
            Ok(confirmed) => format!("{name:?} stands at {confirmed}"),
            Err(error) => format!("{name:?}: {}", error.what()),
        },
    }
}

/// What starting anew means. A slot that can be read is taken over where it stands, so that least is lost; one of ours that cannot be
/// used any more is replaced.
fn anew(look: &Look) -> Result<(String, Option<Intent>)> {
    let settings = look.settings;
    let since = match (look.place, &look.same) {
        (None, _) => "before the start".to_owned(),
        (Some(_), Err(_)) => "behind the last published change".to_owned(),
        (Some(place), Ok(())) => format!("between {} and the start", place.base),
    };
    let mut lost = format!(
        "A new slot begins at the end of the server's log. What was committed {since} is not in the topics, and rows that were \
         deleted in that time stay there."
    );
    if look.history.is_err() {
        lost.push_str(STRAY);
    }
    let Some(slot) = look.slot else { return Ok((lost, None)) };
    slot.free(settings)?;
    match slot.usable(settings) {
        Ok(confirmed) if look.published => Ok((taken_over(look, confirmed), None)),
        // A stream begun before its publication cannot be decoded.
        Ok(_) => Ok((format!("The slot is older than a publication, and is replaced. {lost}"), Some(replace(settings)?))),
        Err(error) if [codes::SLOT_FOREIGN.id, codes::SLOT_SYNCING.id].contains(&error.code().id) => Err(error),
        Err(_) => Ok((format!("The slot cannot be used any more, and is replaced. {lost}"), Some(replace(settings)?))),
    }
}

/// Of a history that was left.
const STRAY: &str = " What was published and never happened on this server stays in the topics.";

/// What it means to go on where a slot stands.
fn taken_over(look: &Look, confirmed: Lsn) -> String {
    let mut means = match look.place {
        None => format!("What was published behind {confirmed} comes again."),
        Some(_) if look.same.is_err() => format!(
            "The position is of another system or database: what was committed before {confirmed} is lost unless it is published \
             already, and everything behind it comes."
        ),
        Some(Place { base, .. }) if confirmed > base => format!("What was committed between {base} and {confirmed} is lost."),
        Some(Place { base, partial: None }) if confirmed == base => "Nothing is lost or repeated.".to_owned(),
        Some(Place { base, .. }) if confirmed == base => "Nothing is lost.".to_owned(),
        Some(Place { base, .. }) => format!("What was committed between {confirmed} and {base} comes again."),
    };
    if let Some(partial) = look.place.and_then(|place| place.partial).filter(|partial| partial.commit >= confirmed) {
        means.push_str(&format!(" What is published of transaction {} comes again.", partial.xid));
    }
    if look.history.is_err() {
        means.push_str(STRAY);
    }
    format!("The slot is taken over where it stands. {means}")
}

/// An intent that stands already lets the next start drop what bears the slot's name.
fn replace(settings: &Settings) -> Result<Intent> {
    let detail =
        slot::Detail { slot: settings.slot.clone(), publication: settings.publication.clone(), confirmed_flush_lsn: None };
    let detail = serde_json::to_string(&detail).map_err(|_| protocol("the intent cannot be written"))?;
    Ok(Intent { mode: IntentMode::Create, detail })
}

/// Whether the position is good on this server: it is of its history, its slot is not ahead of it, and its log reaches it.
fn rebind(look: Look) -> Result<()> {
    let settings = look.settings;
    let place = look.place.ok_or_else(|| {
        Error::new(&codes::NOTHING_TO_REBIND, "the checkpoint has no position to keep")
            .hint("Begin anew: run `headwater reset` without --rebind.")
    })?;
    look.same?;
    look.history?;
    let slot = look.slot.ok_or_else(|| slot::missing(settings, false))?;
    let confirmed = slot.usable(settings)?;
    slot.free(settings)?;
    if confirmed > place.base {
        return Err(slot::ahead(settings, confirmed, place.base));
    }
    let (end, reached) = (look.end, place.reached());
    if end < reached {
        return Err(Error::new(&codes::SERVER_BEHIND, format!("the server's log ends at {end}, before the position {reached}"))
            .hint("Bring back a server that has what was published, or begin anew without --rebind."));
    }
    if !look.published {
        return Err(publication::gone(settings, "the publication does not exist on this server"));
    }
    if place.partial.is_some() { look.divisible } else { Ok(()) }
}
