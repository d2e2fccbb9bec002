//! Modbus TCP, against a server with all four tables.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use dmi::v1beta1 as proto;
use mapper::modbus::Modbus;
use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_modbus::server::tcp::{Server, accept_tcp_connection};
use tokio_modbus::{ExceptionCode, Request, Response, SlaveRequest};

use crate::stub::Stub;
use crate::support::{CYCLE, Running, configuration, device, model, property, until, wish};

const SIZE: usize = 64;
const UNIT: u8 = 7;

/// The tables of a device.
#[derive(Default)]
struct Tables {
    coils: Vec<bool>,
    discrete: Vec<bool>,
    input: Vec<u16>,
    holding: Vec<u16>,
    /// Does not answer.
    hangs: bool,
    /// The gateway says that nobody answers for this register.
    silent: Option<u16>,
}

#[derive(Clone)]
struct Plc {
    tables: Arc<Mutex<Tables>>,
    address: SocketAddr,
}

/// A server that runs until dropped, with its connections.
struct Power(#[expect(dead_code, reason = "held until dropped")] JoinSet<()>);

impl Plc {
    async fn new() -> (Self, Power) {
        let tables = Tables {
            coils: vec![false; SIZE],
            discrete: vec![false; SIZE],
            input: vec![0; SIZE],
            holding: vec![0; SIZE],
            hangs: false,
            silent: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plc = Self { tables: Arc::new(Mutex::new(tables)), address: listener.local_addr().unwrap() };
        let power = plc.serve(listener);
        (plc, power)
    }

    fn power_on(&self) -> Power {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        self.serve(socket.listen(16).unwrap())
    }

    fn serve(&self, listener: TcpListener) -> Power {
        let (plc, mut tasks) = (self.clone(), JoinSet::new());
        tasks.spawn(async move {
            let service = |_| Ok(Some(plc.clone()));
            let connected = |stream, address| async move { accept_tcp_connection(stream, address, service) };
            Server::new(listener).serve(&connected, |_| {}).await.unwrap();
        });
        Power(tasks)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    fn answer(&self, request: SlaveRequest<'_>) -> Result<Response, ExceptionCode> {
        if request.slave != UNIT {
            return Err(ExceptionCode::GatewayTargetDevice);
        }
        let tables = &mut *self.tables();
        Ok(match request.request {
            Request::ReadCoils(at, count) => Response::ReadCoils(part(&tables.coils, at, count)?),
            Request::ReadDiscreteInputs(at, count) => Response::ReadDiscreteInputs(part(&tables.discrete, at, count)?),
            Request::ReadInputRegisters(at, count) => Response::ReadInputRegisters(part(&tables.input, at, count)?),
            Request::ReadHoldingRegisters(at, _) if tables.silent == Some(at) => {
                return Err(ExceptionCode::GatewayTargetDevice);
            }
            Request::ReadHoldingRegisters(at, count) => {
                Response::ReadHoldingRegisters(part(&tables.holding, at, count)?)
            }
            Request::WriteSingleCoil(at, value) => {
                put(&mut tables.coils, at, &[value])?;
                Response::WriteSingleCoil(at, value)
            }
            Request::WriteMultipleCoils(at, values) => {
                put(&mut tables.coils, at, &values)?;
                Response::WriteMultipleCoils(at, values.len() as u16)
            }
            Request::WriteSingleRegister(at, value) => {
                put(&mut tables.holding, at, &[value])?;
                Response::WriteSingleRegister(at, value)
            }
            Request::WriteMultipleRegisters(at, values) => {
                put(&mut tables.holding, at, &values)?;
                Response::WriteMultipleRegisters(at, values.len() as u16)
            }
            _ => return Err(ExceptionCode::IllegalFunction),
        })
    }
}

impl tokio_modbus::server::Service for Plc {
    type Request = SlaveRequest<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response, ExceptionCode>> + Send>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        if self.tables().hangs {
            return Box::pin(std::future::pending());
        }
        Box::pin(std::future::ready(self.answer(request)))
    }
}

fn part<T: Clone>(table: &[T], at: u16, count: u16) -> Result<Vec<T>, ExceptionCode> {
    let (at, count) = (usize::from(at), usize::from(count));
    table.get(at..at + count).map(<[T]>::to_vec).ok_or(ExceptionCode::IllegalDataAddress)
}

fn put<T: Clone>(table: &mut [T], at: u16, values: &[T]) -> Result<(), ExceptionCode> {
    let at = usize::from(at);
    let place = table.get_mut(at..at + values.len()).ok_or(ExceptionCode::IllegalDataAddress)?;
    place.clone_from_slice(values);
    Ok(())
}

fn machine() -> proto::DeviceModel {
    model(&[
        ("temperature", "FLOAT", "ReadOnly", "-50", "150"),
        ("pressure", "FLOAT", "ReadOnly", "", ""),
        ("total", "DOUBLE", "ReadOnly", "", ""),
        ("target", "FLOAT", "ReadWrite", "5", "30"),
        ("speed", "INT", "ReadWrite", "", ""),
        ("on", "BOOLEAN", "ReadWrite", "", ""),
        ("door", "BOOLEAN", "ReadOnly", "", ""),
        ("label", "STRING", "ReadWrite", "", ""),
        ("raw", "BYTES", "ReadOnly", "", ""),
        ("nowhere", "INT", "ReadWrite", "", ""),
        ("fixed", "INT", "ReadWrite", "", ""),
    ])
}

fn at(name: &str, desired: &str, visitor: Json) -> proto::DeviceProperty {
    let visitors = proto::VisitorConfig { protocol_name: "stub".to_owned(), config_data: configuration(&visitor) };
    proto::DeviceProperty { visitors: Some(visitors), ..property(name, desired) }
}

fn of(name: &str, address: SocketAddr, unit: u8, properties: Vec<proto::DeviceProperty>) -> proto::Device {
    let config = json!({"ip": address.ip().to_string(), "port": address.port(), "slaveID": unit});
    let mut device = device(name, properties);
    device.spec.as_mut().unwrap().protocol =
        Some(proto::ProtocolConfig { protocol_name: "stub".to_owned(), config_data: configuration(&config) });
    device.status = Some(proto::DeviceStatus { report_to_cloud: true, report_cycle: CYCLE, twins: Vec::new() });
    device
}

async fn start(devices: Vec<proto::Device>) -> (tempfile::TempDir, Stub, Running) {
    let folder = tempfile::tempdir().unwrap();
    let mut edgecore = Stub::new(folder.path());
    edgecore.known().models = vec![machine(); devices.len()];
    edgecore.known().devices = devices;
    edgecore.start();
    let mapper = Running::start(folder.path(), Modbus);
    (folder, edgecore, mapper)
}

#[tokio::test]
async fn all_tables_are_read() {
    let (plc, _power) = Plc::new().await;
    {
        let mut tables = plc.tables();
        tables.input[3] = (-105_i16) as u16;
        let bits = 1013.25_f32.to_bits();
        // The registers and their bytes the other way round.
        (tables.input[4], tables.input[5]) = ((bits as u16).swap_bytes(), ((bits >> 16) as u16).swap_bytes());
        let bits = 1e9_f64.to_bits();
        (0..4).for_each(|word| tables.holding[8 + word] = (bits >> (48 - 16 * word)) as u16);
        tables.holding[20] = 0x6f6b;
        tables.holding[30] = 0xbeef;
        tables.coils[2] = true;
        tables.discrete[5] = true;
    }
    let properties = vec![
        at("temperature", "", json!({"register": "InputRegister", "offset": 3, "limit": 1, "scale": 0.1})),
        at(
            "pressure",
            "",
            json!({"register": "InputRegister", "offset": 4, "limit": 2, "isSwap": true, "isRegisterSwap": true}),
        ),
        at("total", "", json!({"register": "HoldingRegister", "offset": 8, "limit": 4})),
        at("on", "", json!({"register": "CoilRegister", "offset": 2, "limit": 1})),
        at("door", "", json!({"register": "DiscreteInputRegister", "offset": 5, "limit": 1})),
        at("label", "", json!({"register": "HoldingRegister", "offset": 20, "limit": 4})),
        at("raw", "", json!({"register": "HoldingRegister", "offset": 30, "limit": 1})),
    ];
    let (_folder, edgecore, mapper) = start(vec![of("a", plc.address, UNIT, properties)]).await;
    for (name, value) in [
        ("temperature", "-10.5"),
        ("pressure", "1013.25"),
        ("total", "1000000000"),
        ("on", "true"),
        ("door", "true"),
        ("label", "ok"),
        ("raw", "beef"),
    ] {
        until(name, || edgecore.known().reported("a", name).is_some()).await;
        assert_eq!(edgecore.known().reported("a", name), Some(value), "{name}");
    }
    mapper.stop().await;
}

#[tokio::test]
async fn what_it_shall_be_is_written() {
    let (plc, _power) = Plc::new().await;
    let holding = |offset: u16, limit: u16| json!({"register": "HoldingRegister", "offset": offset, "limit": limit});
    let mut a = of(
        "a",
        plc.address,
        UNIT,
        vec![
            at("target", "21.5", json!({"register": "HoldingRegister", "offset": 0, "limit": 1, "scale": 0.1})),
            at("speed", "65538", holding(1, 2)),
            at("on", "true", json!({"register": "CoilRegister", "offset": 2})),
            at("label", "abc", holding(20, 2)),
            // The device has no such register.
            at("nowhere", "1", holding(500, 1)),
            // Modbus has no way to write these.
            at("fixed", "1", json!({"register": "InputRegister", "offset": 1})),
        ],
    );
    let (_folder, edgecore, mapper) = start(vec![a.clone()]).await;
    until("all are written", || {
        let tables = plc.tables();
        tables.holding[..3] == [215, 1, 2] && tables.coils[2] && tables.holding[20..22] == [0x6162, 0x6300]
    })
    .await;
    until("and reported", || edgecore.known().reported("a", "target") == Some("21.5")).await;
    let mut client = mapper.client().await;
    client.update_device(wish(&mut a, "target", "31")).await.unwrap();
    client.update_device(wish(&mut a, "speed", "9")).await.unwrap();
    until("speed is written", || plc.tables().holding[1..3] == [0, 9]).await;
    assert_eq!(plc.tables().holding[0], 215, "31 is out of bounds");
    assert_eq!(edgecore.known().reported("a", "nowhere"), None);
    // Exceptions are answers.
    assert!(edgecore.known().states.iter().all(|(_, state)| state == "online"));
    mapper.stop().await;
}

#[tokio::test]
async fn a_device_that_dies_and_comes_back() {
    let (plc, power) = Plc::new().await;
    let speed = at("speed", "5", json!({"register": "HoldingRegister", "offset": 1}));
    let behind = at("speed", "", json!({"register": "HoldingRegister", "offset": 1}));
    let a = of("a", plc.address, UNIT, vec![speed]);
    // Behind the same gateway, which says that it is not there.
    let (_folder, edgecore, mapper) = start(vec![a, of("b", plc.address, 99, vec![behind])]).await;
    let last = |of: &str| {
        let states = edgecore.known().states.clone();
        states.into_iter().rev().find(|(device, _)| device == of).map(|(_, state)| state)
    };
    until("a is online", || last("a").as_deref() == Some("online")).await;
    until("b is offline", || last("b").as_deref() == Some("offline")).await;
    drop(power);
    until("a is offline", || last("a").as_deref() == Some("offline")).await;
    plc.tables().holding[1] = 0;
    let _power = plc.power_on();
    until("a is online again", || last("a").as_deref() == Some("online")).await;
    until("and told again what it shall be", || plc.tables().holding[1] == 5).await;
    mapper.stop().await;
}

#[tokio::test]
async fn a_register_for_which_nobody_answers_silences_no_other() {
    let (plc, _power) = Plc::new().await;
    plc.tables().silent = Some(9);
    let holding = |offset: u16| json!({"register": "HoldingRegister", "offset": offset});
    let properties = vec![at("fixed", "", holding(9)), at("speed", "5", holding(1))];
    let (_folder, edgecore, mapper) = start(vec![of("a", plc.address, UNIT, properties)]).await;
    until("the other is told", || edgecore.known().reported("a", "speed") == Some("5")).await;
    assert!(edgecore.known().states.iter().all(|(_, state)| state == "online"));
    plc.tables().silent = None;
    until("and this when it answers", || edgecore.known().reported("a", "fixed") == Some("0")).await;
    mapper.stop().await;
}

#[tokio::test]
async fn a_device_that_hangs_is_given_up_and_tried_again() {
    let (plc, _power) = Plc::new().await;
    plc.tables().hangs = true;
    let speed = at("speed", "", json!({"register": "HoldingRegister", "offset": 1}));
    let (_folder, edgecore, mapper) = start(vec![of("a", plc.address, UNIT, vec![speed])]).await;
    let last = || edgecore.known().states.last().map(|(_, state)| state.clone());
    until("a is offline", || last().as_deref() == Some("offline")).await;
    plc.tables().hangs = false;
    until("a is online", || last().as_deref() == Some("online")).await;
    until("and reported", || edgecore.known().reported("a", "speed") == Some("0")).await;
    mapper.stop().await;
}
