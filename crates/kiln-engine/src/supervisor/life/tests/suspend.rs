//! Lives that are suspended, and go on.

use super::*;

const SUSPENDED: EndCause = EndCause::Suspended;

fn idle(after_ms: u64, script: impl IntoIterator<Item = (u64, Act)>) -> Life<Fake> {
    let mut life = life(Behaviour::Boots, None, "always", script);
    life.record.idle_suspend_ms = Some(after_ms);
    life
}

#[test]
fn a_suspension_is_the_end_by_every_policy_and_a_start_goes_on() {
    for pause in [false, true] {
        let first = if pause { vec![(5, Act::Pause)] } else { Vec::new() };
        let mut life = life(Behaviour::Boots, None, "always", first.into_iter().chain([(10, Act::Suspend)]));
        assert_eq!(end(&mut life), SUSPENDED);
        assert_eq!(answers(&life).pop(), Some(Some(Ok(false))));
        let last = life.world.kept.last().unwrap();
        assert_eq!((last.phase, last.suspended_unix_ms), (Phase::Suspended, Some(1_000_010)));
        assert_eq!((last.supervisor_pid, last.vmm_pid, last.paused_unix_ms), (None, None, None));
        assert!(life.is_suspended());
        let mut life = again(life, [(50, Act::PowerOff), (300, Act::Stop(0))]);
        assert_eq!(end(&mut life), EndCause::Requested);
        let on = life.world.kept.iter().rfind(|kept| kept.restored && kept.phase == Phase::Running);
        assert_eq!(on.unwrap().suspended_unix_ms, None);
        // What its policy starts again boots: the saved state was its last run's.
        assert_eq!(life.world.launched_at_ms, [0, 10, 150]);
        assert!(!life.world.kept.last().unwrap().restored);
    }
}

#[test]
fn a_suspension_that_fails_changes_nothing_and_says_why() {
    let script = [(10, Act::Suspend), (20, Act::Ask), (30, Act::Pause), (40, Act::Suspend)];
    let mut life = life(Behaviour::Boots, None, "no", script);
    life.world.refuses_save = Some(("no room".to_owned(), false));
    assert_eq!(end(&mut life), SUSPENDED);
    let said = [Err("no room".to_owned()), Ok(false), Ok(false)].map(Some);
    assert_eq!(answers(&life), said);
    // Its clock is set right, and it is reached again.
    assert_eq!((life.world.clocks_set, life.world.asked.as_slice()), (1, &[true][..]));
}

#[test]
fn a_machine_that_is_lost_while_it_is_saved_has_failed_and_is_not_started_again() {
    let mut life = life(Behaviour::Boots, None, "always", [(10, Act::Suspend)]);
    life.world.refuses_save = Some(("it broke".to_owned(), true));
    let message = "it broke".to_owned();
    assert_eq!(end(&mut life), EndCause::VmmExited { code: -1, message });
    assert_eq!(answers(&life), [Some(Err("it broke".to_owned()))]);
    assert_eq!(life.world.kept.last().unwrap().phase, Phase::Failed);
    assert_eq!(life.world.launched_at_ms, [0]);
}

#[test]
fn a_machine_that_is_not_ready_or_rests_is_not_suspended() {
    let mut starting = life(Behaviour::Boots, None, "no", [(1, Act::Suspend), (2, Act::Stop(0))]);
    starting.world.ready_at_once = false;
    assert_eq!(end(&mut starting), EndCause::Requested);
    assert_eq!(answers(&starting), [Some(Err("it is starting".to_owned()))]);
    let script = [(5, Act::PowerOff), (30, Act::Suspend), (40, Act::Stop(0))];
    let mut resting = life(Behaviour::Boots, None, "always", script);
    assert_eq!(end(&mut resting), EndCause::Requested);
    assert_eq!(answers(&resting), [Some(Err("it is starting".to_owned()))]);
}

#[test]
fn a_machine_that_cannot_go_on_stays_suspended_since_when_it_was() {
    let mut life = life(Behaviour::Boots, None, "always", [(10, Act::Suspend)]);
    end(&mut life);
    life.world.now_ms = 500;
    let mut life = again(life, []);
    life.world.refuses_resume = true;
    let message = "vmm_version was 1 and is 2 here".to_owned();
    assert_eq!(end(&mut life), EndCause::StartFailed { message });
    let last = life.world.kept.last().unwrap();
    assert_eq!((last.phase, last.suspended_unix_ms), (Phase::Suspended, Some(1_000_010)));
    assert_eq!(last.end, Some(SUSPENDED));
    let mut life = again(life, [(600, Act::Stop(0))]);
    life.world.refuses_resume = false;
    assert_eq!(end(&mut life), EndCause::Requested);
}

#[test]
fn a_time_to_live_goes_on_while_nothing_runs() {
    let mut first = life(Behaviour::Boots, Some(1000), "no", [(10, Act::Suspend)]);
    assert_eq!(end(&mut first), SUSPENDED);
    assert_eq!(first.world.kept.last().unwrap().expires_unix_ms, Some(1_001_000));
    first.world.now_ms = 900;
    let mut life = again(first, []);
    assert_eq!(end(&mut life), EndCause::Expired);
    assert_eq!(life.world.now_ms, 1000);
}

#[test]
fn an_idle_machine_is_suspended_and_goes_on_idle_again() {
    let mut life = idle(8000, []);
    assert_eq!(end(&mut life), SUSPENDED);
    assert_eq!(life.world.now_ms, 8000);
    let mut life = again(life, []);
    assert_eq!(end(&mut life), SUSPENDED);
    assert_eq!(life.world.now_ms, 16_000);
}

#[test]
fn work_sessions_and_pauses_keep_a_machine_from_being_idle() {
    use Act::{Ask, Pause, Resume, Work};
    let mut worked = idle(8000, [(0, Work(30)), (20_000, Work(2))]);
    assert_eq!(end(&mut worked), SUSPENDED);
    assert_eq!(worked.world.now_ms, 28_000);
    let mut asked = idle(8000, [(5000, Ask), (11_500, Ask)]);
    assert_eq!(end(&mut asked), SUSPENDED);
    // Seen at the next look, which comes every two seconds.
    assert_eq!(asked.world.now_ms, 20_000);
    let mut paused = idle(8000, [(100, Pause), (50_000, Resume)]);
    assert_eq!(end(&mut paused), SUSPENDED);
    assert!((58_000..=62_000).contains(&paused.world.now_ms), "{}", paused.world.now_ms);
    let mut plain = life(Behaviour::Boots, None, "no", [(3_600_000, Act::Stop(0))]);
    assert_eq!(end(&mut plain), EndCause::Requested);
}

#[test]
fn an_idle_machine_that_cannot_be_saved_goes_on_and_is_tried_again_after_the_same_time() {
    let mut life = idle(8000, [(9000, Act::Ask)]);
    life.world.refuses_save = Some(("no room".to_owned(), false));
    assert_eq!(end(&mut life), SUSPENDED);
    assert_eq!(life.world.asked, [true]);
    assert_eq!(life.world.now_ms, 18_000);
}

#[test]
fn an_end_that_was_asked_for_is_not_overtaken_by_a_suspension() {
    let mut life = idle(8000, [(7000, Act::Stop(5000))]);
    life.world.obeys = false;
    assert_eq!(end(&mut life), EndCause::Requested);
    assert_eq!(life.world.now_ms, 12_000);
    assert_eq!(life.world.kept.last().unwrap().phase, Phase::Stopped);
}
