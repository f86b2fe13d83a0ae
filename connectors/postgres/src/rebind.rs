//! What the server shows about a checkpoint that is to be given up or moved here.

use headwater_connector::{Error, Identity, Intent, IntentMode, Position, Result, Survey};

use crate::{
    catalog::Catalog,
    codes,
    config::Settings,
    error::protocol,
    position::{Lsn, Place},
    publication,
    slot::{self, END_OF_LOG, Slot},
};

/// See [`headwater_connector::SourceConnector::survey`]. `found` is the identity of the server that was reached.
pub async fn survey(
    catalog: &mut Catalog,
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
    facts.push(("server's log", format!("ends at {end}")));
    facts.push(("slot", state(settings, slot.as_ref())));
    facts.push(("publication", format!("{:?} {}", settings.publication, if published { "exists" } else { "does not exist" })));
    let anew = anew(settings, slot.as_ref(), published, place);
    let rebind = rebind(settings, slot.as_ref(), published, place, end).map(|()| found);
    Ok(Survey { facts, anew, rebind })
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
fn anew(settings: &Settings, slot: Option<&Slot>, published: bool, place: Option<Place>) -> Result<(String, Option<Intent>)> {
    let since = place.map_or_else(|| "before the start".to_owned(), |place| format!("between {} and the start", place.base));
    let lost = format!(
        "A new slot begins at the end of the server's log. What was committed {since} is not in the topics, and rows that were \
         deleted in that time stay there."
    );
    let Some(slot) = slot else { return Ok((lost, None)) };
    slot.free(settings)?;
    match slot.usable(settings) {
        Ok(confirmed) if published => {
            let sentence = match place {
                Some(place) if confirmed > place.base => {
                    format!(
                        "The slot is taken over where it stands. What was committed between {} and {confirmed} is lost.",
                        place.base
                    )
                }
                Some(place) if confirmed == place.base => {
                    "The slot is taken over where it stands. Nothing is lost or repeated.".to_owned()
                }
                Some(place) => {
                    format!(
                        "The slot is taken over where it stands. What was committed between {confirmed} and {} comes again.",
                        place.base
                    )
                }
                None => format!("The slot is taken over where it stands. What was published behind {confirmed} comes again."),
            };
            Ok((sentence, None))
        }
        // A stream begun before its publication cannot be decoded.
        Ok(_) => Ok((format!("The slot is older than a publication, and is replaced. {lost}"), Some(replace(settings)?))),
        Err(error) if [codes::SLOT_FOREIGN.id, codes::SLOT_SYNCING.id].contains(&error.code().id) => Err(error),
        Err(_) => Ok((format!("The slot cannot be used any more, and is replaced. {lost}"), Some(replace(settings)?))),
    }
}

/// An intent that stands already lets the next start drop what bears the slot's name.
fn replace(settings: &Settings) -> Result<Intent> {
    let detail =
        slot::Detail { slot: settings.slot.clone(), publication: settings.publication.clone(), confirmed_flush_lsn: None };
    let detail = serde_json::to_string(&detail).map_err(|_| protocol("the intent cannot be written"))?;
    Ok(Intent { mode: IntentMode::Create, detail })
}

/// Whether the position is good on this server: its slot is not ahead of it, and its log reaches it.
fn rebind(settings: &Settings, slot: Option<&Slot>, published: bool, place: Option<Place>, end: Lsn) -> Result<()> {
    let place = place.ok_or_else(|| {
        Error::new(&codes::NOTHING_TO_REBIND, "the checkpoint has no position to keep")
            .hint("Begin anew: run `headwater reset` without --rebind.")
    })?;
    let slot = slot.ok_or_else(|| slot::missing(settings, false))?;
    let confirmed = slot.usable(settings)?;
    slot.free(settings)?;
    if confirmed > place.base {
        return Err(slot::ahead(settings, confirmed, place.base));
    }
    if end < place.base {
        return Err(Error::new(
            &codes::SERVER_BEHIND,
            format!("the server's log ends at {end}, before the position {}", place.base),
        )
        .hint("Bring back a server that has what was published, or begin anew without --rebind."));
    }
    if !published {
        return Err(publication::gone(settings, "the publication does not exist on this server"));
    }
    Ok(())
}
