//! tmp
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
fn main() {
    let verb = std::env::args().nth(1).unwrap();
    let path = std::env::var("STARLOCK_CONFIG").unwrap();
    let client =
        starlock::admin::Client::new(format!("{}/admin.sock", std::env::var("RUNTIME_DIRECTORY").unwrap()));
    match verb.as_str() {
        "status" => match client.status() {
            Ok(s) => println!("{}", serde_json::to_string(&s).unwrap()),
            Err(e) => {
                eprintln!("{e}");
                std::process::exit(1)
            }
        },
        "certs" => println!("{}", serde_json::to_string(&client.certificates().unwrap()).unwrap()),
        "reload" => match client.reload() {
            Ok(_) => {}
            Err(e) => {
                eprintln!("{e}");
                std::process::exit(1)
            }
        },
        _ => {
            starlock::telemetry::init(starlock::telemetry::LogFormat::Text, Some("debug")).unwrap();
            rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
            let p2 = path.clone();
            let loader: starlock::app::Loader = std::sync::Arc::new(move || {
                starlock::config::load(std::path::Path::new(&p2)).map_err(|e| e.to_string())
            });
            match starlock::app::serve(loader, path) {
                Ok(()) => {}
                Err(e) => {
                    println!("{e:?}");
                    std::process::exit(1)
                }
            }
        }
    }
}
