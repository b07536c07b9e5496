//! `shrink devices`.

use serde_json::{Value, json};

use crate::device::{Backend, backends, description, distrusted};
use crate::report::table;
use crate::session::Session;

/// Lists what `--device` can name.
pub fn run(session: &Session) -> anyhow::Result<()> {
    let backends = backends();
    let object = json!({
        "threads": rayon::current_num_threads(),
        "backends": backends.iter().map(json_of).collect::<Vec<_>>(),
    });
    let rows: Vec<_> = backends.iter().flat_map(rows).collect();
    session.print(&object, &table(&["--device", ""], &rows))
}

fn names(backend: &Backend) -> Vec<(String, String)> {
    let one = |(index, device): (usize, &burn::tensor::Device)| match backend.name {
        "cpu" => ("cpu".to_owned(), format!("{} threads", rayon::current_num_threads())),
        name => {
            let what = description(device);
            let why = distrusted(device).map_or_else(String::new, |why| format!("; refused: {why}"));
            (format!("{name}:{index}"), what + &why)
        }
    };
    backend.devices.iter().enumerate().map(one).collect()
}

fn json_of(backend: &Backend) -> Value {
    let device = |(device, what): (String, String)| json!({ "device": device, "what": what });
    json!({
        "name": backend.name,
        "compiled_in": backend.left_out.is_none(),
        "devices": names(backend).into_iter().map(device).collect::<Vec<_>>(),
    })
}

fn rows(backend: &Backend) -> Vec<Vec<String>> {
    let nothing = |why: String| vec![vec![backend.name.to_owned(), why]];
    match &backend.left_out {
        Some(error) => nothing(error.hint().map_or_else(String::new, |hint| format!("left out; {hint}"))),
        None if backend.devices.is_empty() => {
            nothing("no such device on this machine; check the driver".into())
        }
        None => names(backend).into_iter().map(|(device, what)| vec![device, what]).collect(),
    }
}
