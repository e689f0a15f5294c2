//! Machines and their processes: they start, die, lose power and get other disks.

use super::*;

impl World {
    /// Starts the node's process, if the machine is on and it does not run.
    pub fn start_process(&mut self, id: NodeId) {
        if !matches!(self.node(id).state, State::Down) {
            return;
        }
        self.runs += 1;
        let run = self.runs;
        self.node_mut(id).run = run;
        if self.node(id).witness {
            self.node_mut(id).state = State::Running;
            self.begin_control(id);
            return;
        }
        let Some(attached) = self.attach(id) else {
            return;
        };
        self.node_mut(id).state = State::Attaching {
            left: attached.writes().into(),
            attached,
        };
        let us = self.rng.between(200, 2000);
        self.after_us(us, Occurrence::Attach(Process { node: id, run }));
    }

    /// Reads the metadata of the node's disk.
    fn attach(&mut self, id: NodeId) -> Option<Box<dyn Attached>> {
        let mut rng = self.rng.fork();
        let expected = Expected {
            cluster: self.cluster,
            resource: self.store.record().resource,
            node: id,
            boot: self.node(id).boot,
            settings: self.config.settings,
        };
        let factory = Rc::clone(&self.factory);
        let now = self.clock(id);
        let node = self.node_mut(id);
        node.settle(&mut rng);
        let volumes: Vec<&Volume> = node.volumes.iter().collect();
        let attached = match factory.attach(&volumes, &expected, now) {
            Ok(attached) => attached,
            Err(lost) => {
                self.identity_lost(id, &lost);
                return None;
            }
        };
        let member = attached.member();
        let node = self.node_mut(id);
        if member.disk != node.disk {
            let what = format!("node {id} attached {member:?}, its disk is {:?}", node.disk);
            self.broken(Rule::Intact, what);
            return None;
        }
        if node.lost.is_some_and(|lost| member.incarnation <= lost)
            || member.incarnation < node.incarnation
        {
            let what = format!(
                "node {id} attached {:?} after its caches were lost at {:?} (last was {:?})",
                member.incarnation, node.lost, node.incarnation
            );
            self.broken(Rule::Eligible, what);
            return None;
        }
        self.say(|| format!("{id:?} attaches as {member:?}"));
        Some(attached)
    }

    /// A process that runs without a replica takes one up.
    pub(crate) fn take_up(&mut self, id: NodeId) {
        let Some(attached) = self.attach(id) else {
            return;
        };
        let node = self.node_mut(id);
        for (volume, offset, data) in attached.writes() {
            if let Some(store) = node.volumes.get_mut(volume.index()) {
                store.meta.write(offset, &data);
            }
        }
        self.run_replica(id, attached);
    }

    pub(super) fn attach_step(&mut self, process: Process) {
        let node = self.node_mut(process.node);
        if node.run != process.run {
            return;
        }
        let State::Attaching { left, .. } = &mut node.state else {
            return;
        };
        if let Some((volume, offset, data)) = left.pop_front() {
            if let Some(store) = node.volumes.get_mut(volume.index()) {
                store.meta.write(offset, &data);
            }
            let us = self.rng.between(100, 600);
            self.after_us(us, Occurrence::Attach(process));
            return;
        }
        let State::Attaching { attached, .. } = std::mem::replace(&mut node.state, State::Running)
        else {
            return;
        };
        let member = attached.member();
        self.run_replica(process.node, attached);
        if self.is_whole() {
            self.begin_control(process.node);
            return;
        }
        let us = self.rng.between(100, 5000);
        self.after_us(us, Occurrence::Declare(member));
        let record = Box::new(self.store.record().clone());
        self.after_us(us + 200, Occurrence::Record(process.node, record));
    }

    fn run_replica(&mut self, id: NodeId, attached: Box<dyn Attached>) {
        let member = attached.member();
        let core = attached.start(self.clock(id));
        let node = self.node_mut(id);
        node.incarnation = member.incarnation;
        node.meta_damage = 0;
        node.meta_rots = 0;
        node.core = Some(core);
        node.clean = false;
        self.say(|| format!("{id:?} runs"));
        self.rearm(id);
        if self.config.follow {
            let session = self.rng.draw();
            let errors = self.config.settings.no_quorum_errors;
            let access = Access::Follow { session, errors };
            self.feed(id, Event::Access(access));
        }
    }

    /// The node's process dies.
    pub fn kill_process(&mut self, id: NodeId) {
        if matches!(self.node(id).state, State::Off | State::Down) {
            return;
        }
        self.say(|| format!("{id:?} process dies"));
        let process = self.node(id).process();
        let mut rng = self.rng.fork();
        self.end_control(id, false);
        self.node_mut(id).kill(&mut rng);
        self.clients.forget(process);
        self.operator.forget(process);
        self.end_conns(process, true);
    }

    /// The node's machine loses its power.
    pub fn power_off(&mut self, id: NodeId, loss: crate::disk::Loss) {
        if !self.node(id).is_on() {
            return;
        }
        self.say(|| format!("{id:?} loses power ({loss:?})"));
        let process = self.node(id).process();
        let mut rng = self.rng.fork();
        self.end_control(id, true);
        self.node_mut(id).power_off(loss, &mut rng);
        self.clients.forget(process);
        self.operator.forget(process);
        self.end_conns(process, false);
    }

    /// The node's machine comes back, with its process.
    pub fn power_on(&mut self, id: NodeId) {
        if self.node(id).is_on() {
            return;
        }
        self.say(|| format!("{id:?} boots"));
        let boot = self.rng.id();
        let base = Time(self.rng.between(10_000_000, 3_000_000_000));
        let (now, whole) = (self.now, self.is_whole());
        let node = self.node_mut(id);
        if whole {
            (node.clock.base, node.clock.at) = (base, now);
        }
        node.boot = boot;
        node.state = State::Down;
        self.start_process(id);
    }

    pub(crate) fn end_conns(&mut self, process: Process, told: bool) {
        let ends: Vec<(u64, End)> = self
            .net
            .conns()
            .filter_map(|(id, conn)| Some((id, conn.end_of(process)?)))
            .collect();
        for (id, end) in ends {
            let due = self.net.end(id, end, told, self.now, &mut self.rng);
            self.due(due);
        }
    }

    /// Puts another, empty disk into a machine that is not running.
    pub fn replace_disk(&mut self, id: NodeId) {
        self.kill_process(id);
        if !self.node(id).is_on() {
            return;
        }
        let disk = DiskId(self.rng.id());
        self.say(|| format!("{id:?} gets another disk {disk:?}"));
        let record = self.store.record();
        let new = NewReplica {
            cluster: self.cluster,
            resource: record.resource,
            node: id,
            disk,
            sizes: record.sizes.clone(),
            replicas: record.replicas,
            al_extents: self.config.al_extents,
            boot: self.node(id).boot,
            pristine: false,
        };
        let writes = self.factory.create(&new);
        let node = self.node_mut(id);
        node.replace_disk(disk, &new.sizes);
        for (volume, offset, data) in writes {
            if let Some(store) = node.volumes.get_mut(volume.index()) {
                store.meta.write(offset, &data);
            }
        }
    }
}
