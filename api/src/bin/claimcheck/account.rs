//! `login`, `logout` and `keys`.

use std::io::{BufRead, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::args::{Keys, Login};
use crate::client::Client;
use crate::credentials::Credentials;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, cell, table, time, watched};

/// Gets credentials and keeps them.
pub(crate) async fn login(args: Login, client: &Client, file: &Path, output: Output) -> Result<Outcome, Failure> {
    let url = client.url().to_owned();
    if args.api_key_stdin {
        let secret = line_of_input("API key")?;
        let kept = Credentials {
            url: url.clone(),
            secret,
            ..Credentials::default()
        };
        kept.write(file)?;
        output.print(&json!({"url": url}), |_| format!("The API key for {url} is kept."))?;
        return Ok(Outcome::Done);
    }
    let username = args.username.map_or_else(|| ask("Username: "), Ok)?;
    let password = if args.password_stdin {
        line_of_input("password")?
    } else {
        rpassword::prompt_password("Password: ").map_err(|error| Failure::Usage(format!("no password: {error}")))?
    };
    if let Some(email) = args.register {
        let body = json!({"username": username, "email": email, "password": password});
        let _made: Value = client
            .create("/v1/auth/register", &uuid::Uuid::now_v7().to_string(), &body)
            .await?;
    }
    let form = [
        ("grant_type", "password"),
        ("username", &username),
        ("password", &password),
    ];
    let issued: Value = client.form("/v1/auth/token", &form).await?;
    let text = |field: &str| issued[field].as_str().map(str::to_owned);
    let secret = text("access_token").ok_or_else(|| Failure::Other("the service gave no access token".to_owned()))?;
    let kept = Credentials {
        url: url.clone(),
        username: Some(username.clone()),
        secret,
        refresh_token: text("refresh_token"),
    };
    kept.write(file)?;
    output.print(&json!({"url": url, "username": username}), |_| {
        format!("Logged in to {url} as {username}.")
    })?;
    Ok(Outcome::Done)
}

/// Forgets the credentials.
pub(crate) fn logout(file: &Path, output: Output) -> Result<Outcome, Failure> {
    let were = Credentials::remove(file)?;
    output.print(&json!({"logged_out": were}), |_| {
        if were {
            "Logged out."
        } else {
            "There were no credentials."
        }
        .to_owned()
    })?;
    Ok(Outcome::Done)
}

/// API keys.
pub(crate) async fn keys(command: Keys, client: &Client, output: Output) -> Result<Outcome, Failure> {
    match command {
        Keys::List => {
            let list: Value = client.get("/v1/api_keys", &[("limit", "100")]).await?;
            output.print(&list, |list| {
                let empty = Vec::new();
                let keys = list["data"].as_array().unwrap_or(&empty);
                let rows: Vec<_> = keys.iter().map(key_row).collect();
                table(&["id", "name", "key", "scopes", "last used", "state"], &rows)
            })?;
        }
        Keys::Create { name, scopes } => {
            let body = json!({"name": name, "scopes": scopes});
            let mut key: Value = client
                .create("/v1/api_keys", &uuid::Uuid::now_v7().to_string(), &body)
                .await?;
            // The first answer was lost, and the key itself with it.
            if key["key"].is_null() {
                key = rotated(client, &cell(&key["id"])).await?;
            }
            show_secret(&key, output)?;
        }
        Keys::Rotate { id } => show_secret(&rotated(client, &id).await?, output)?,
        Keys::Revoke { id } => {
            let key: Value = client.delete(&format!("/v1/api_keys/{id}")).await?;
            output.print(&key, |_| format!("{id} is revoked."))?;
        }
    }
    Ok(Outcome::Done)
}

async fn rotated(client: &Client, id: &str) -> Result<Value, Failure> {
    let path = format!("/v1/api_keys/{id}/rotate");
    client
        .create(&path, &uuid::Uuid::now_v7().to_string(), &json!({}))
        .await
}

fn key_row(key: &Value) -> Vec<String> {
    let scopes = key["scopes"].as_array().map_or(0, Vec::len);
    let scopes = (0..scopes).filter_map(|place| key["scopes"][place].as_str());
    let state = if key["revoked_at"].is_null() {
        "active"
    } else {
        "revoked"
    };
    vec![
        cell(&key["id"]),
        cell(&key["name"]),
        format!("{}…", cell(&key["hint"])),
        scopes.collect::<Vec<_>>().join(" "),
        time(&key["last_used_at"]),
        state.to_owned(),
    ]
}

/// The secret alone goes to standard output, so that it can be caught in a variable.
fn show_secret(key: &Value, output: Output) -> Result<(), Failure> {
    output.note(&format!("{}: keep it now, it is not shown again.", cell(&key["id"])));
    output.print(key, |key| cell(&key["key"]))
}

fn line_of_input(what: &str) -> Result<String, Failure> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let line = line.trim_end_matches(['\r', '\n']);
    if line.is_empty() {
        return Err(Failure::Usage(format!("standard input has no {what}")));
    }
    Ok(line.to_owned())
}

fn ask(question: &str) -> Result<String, Failure> {
    if !watched() {
        return Err(Failure::Usage(
            "--username is needed where nobody can be asked".to_owned(),
        ));
    }
    let mut error = std::io::stderr().lock();
    error.write_all(question.as_bytes())?;
    error.flush()?;
    line_of_input("username")
}
